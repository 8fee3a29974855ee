//! `remote du`, `remote rm` and `remote gc` by the real binary: what takes space in a bucket, and what may be deleted from it.

use serde_json::{Value, json};

use crate::harness::cache::{COMMIT, OTHER, Revision};
use crate::harness::machine::{Machine, Output};
use crate::harness::scripted::{Reply, Scripted};
use crate::harness::store::Store;

/// Two repos that share a file, and a blob that nobody needs.
fn shared_bucket(store: &Store) {
    let weights = vec![7; 3000];
    Revision::new("model", "org/one").lfs("model.bin", &weights).git("a.txt", "one").publish(store);
    Revision::new("model", "org/two").at(OTHER).lfs("model.bin", &weights).git("b.txt", "two!").publish(store);
    store.put(&format!("blobs/{}", "e".repeat(64)), [0; 500]);
}

/// What a person sees, with the name of the server replaced.
fn shown(ran: &Output, store: &Store) -> String {
    ran.text().replace(&store.server.url, "[URL]")
}

#[test]
fn du_tells_unique_shared_and_unreferenced_bytes_apart() {
    let store = Store::new();
    let machine = Machine::new(&store);
    shared_bucket(&store);
    store.put("blobs/half.incomplete", [0; 20]);
    store.put("manifests/notes.txt", "hello");
    let before = store.objects();
    let ran = machine.run(&["remote", "du"]);
    insta::assert_snapshot!("du", shown(&ran, &store));
    let report = machine.ok_json(&["remote", "du", "--json"]);
    let row = &report["repos"][0];
    assert_eq!((&row["repo"], &row["unique"], &row["shared"]), (&"org/two".into(), &4.into(), &3000.into()));
    assert_eq!(report["blobs"], json!({"blobs": 4, "bytes": 3507}));
    assert_eq!(report["unreferenced"], json!({"blobs": 1, "bytes": 500}));
    assert_eq!(report["foreign"], json!({"keys": 2, "bytes": 25}));
    // The server knows neither.
    assert_eq!((&report["unfinished_uploads"], &report["versioned"]), (&Value::Null, &Value::Null));
    assert_eq!(store.objects(), before);
}

#[test]
fn du_of_what_cannot_be_read_says_so() {
    let store = Store::new();
    let machine = Machine::new(&store);
    shared_bucket(&store);
    store.put(&format!("manifests/org__one@{COMMIT}.json"), "{");
    let ran = machine.run(&["remote", "du"]);
    assert_eq!(ran.code, 5, "{ran:#?}");
    assert!(ran.stderr.contains("manifests that could not be read may need them"), "{ran:#?}");
    assert!(ran.stderr.contains("is not valid"), "{ran:#?}");
}

#[test]
fn du_says_that_the_space_of_earlier_versions_comes_back_later() {
    let store = Scripted::new();
    let machine = store.machine();
    for (key, bytes) in Revision::model("org/one").git("a.txt", "one").objects() {
        store.put(&key, bytes);
    }
    let xml = |text: &str| Some(Reply::new(200, text).header("content-type", "application/xml"));
    store.script(move |asked, _| match asked.query.split('&').next() {
        Some("versioning=") => xml("<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"),
        Some("uploads=") => xml(&format!(
            "<ListMultipartUploadsResult><Upload><Key>blobs/{}</Key><UploadId>u</UploadId></Upload>\
             <Upload><Key>blobs/other</Key><UploadId>v</UploadId></Upload></ListMultipartUploadsResult>",
            "a".repeat(64)
        )),
        _ => None,
    });
    let ran = machine.run(&["remote", "du"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    for words in ["earlier versions", "1 unfinished upload,"] {
        assert!(ran.stderr.contains(words), "{words}: {ran:#?}");
    }
    // A key that may not ask is told everything else.
    store.script(|asked, _| {
        let asks = asked.query.starts_with("versioning") || asked.query.starts_with("uploads");
        asks.then(|| Reply::refusal(403, "AccessDenied", "Access Denied"))
    });
    let report = machine.ok_json(&["remote", "du", "--json"]);
    assert_eq!((&report["unfinished_uploads"], &report["versioned"]), (&Value::Null, &Value::Null));
}
