//! Does a repo look gated? A best-effort reading of its licence files, as in 0.1.0: keywords such as "agreement".
//!
//! The well-known open licences contain some of these words in their standard text ("any separate license
//! agreement", Apache-2.0). Where a file is recognised as such a licence, exactly those sentences do not count;
//! anything added to the text still does.

use std::io;
use std::path::Path;

/// The files that are read, at the root of a snapshot.
pub const LICENSE_FILES: [&str; 4] = ["LICENSE", "LICENSE.md", "LICENSE.txt", "USE_POLICY.md"];

/// 0.1.0's keywords, looked for in lower case, from the beginning of a word: not "aggregated", not "disagreement".
const KEYWORDS: [&str; 6] =
    ["agreement", "meta llama", "acceptable use", "community license", "you must accept", "gated"];

/// Longest licence file that is read, in bytes; a longer one is judged by its beginning.
const MAX_SIZE: u64 = 1 << 20;

/// An open licence: how its standard text is recognised, and its sentences that contain a keyword.
struct OpenLicense {
    marks: &'static [&'static str],
    harmless: &'static [&'static str],
}

/// All in lower case, white space folded. MIT, BSD, ISC, zlib, Unlicense, CC0 and their like need no entry: their
/// texts contain no keyword.
const OPEN_LICENSES: [OpenLicense; 5] = [
    OpenLicense {
        marks: &[
            "apache license",
            "version 2.0, january 2004",
            "terms and conditions for use, reproduction, and distribution",
        ],
        harmless: &["terms of any separate license agreement you may have executed with licensor"],
    },
    OpenLicense {
        marks: &["mozilla public license"],
        harmless: &[
            "all end user license agreements (excluding distributors and resellers)",
            "this license represents the complete agreement concerning",
        ],
    },
    OpenLicense {
        marks: &["gnu", "general public license", "free software foundation"],
        harmless: &[
            "the license agreements of most software companies try to keep users at",
            "this license agreement applies to any",
            "(whether by court order, agreement or otherwise)",
            "a \"patent license\" is any express agreement or commitment, however denominated",
            "to make such an agreement or commitment not to enforce a patent",
        ],
    },
    OpenLicense {
        marks: &["creative commons", "attribution", "licensed material"],
        harmless: &["any arrangements, understandings, or agreements regarding the licensed material"],
    },
    OpenLicense {
        marks: &["creative commons", "attribution", "the work (as defined below)"],
        harmless: &[
            "this license constitutes the entire agreement between the parties",
            "there are no understandings, agreements or representations",
            "mutual written agreement of the licensor and you",
        ],
    },
];

/// Why a repo looks gated.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Gated {
    /// The licence file.
    pub file: String,
    /// The keyword found in it.
    pub keyword: &'static str,
}

/// The first keyword in a licence text that is not part of an open licence's standard text.
pub fn keyword_in(text: &str) -> Option<&'static str> {
    let mut folded = text.to_lowercase().replace(['“', '”'], "\"");
    folded = folded.split_whitespace().collect::<Vec<_>>().join(" ");
    for license in &OPEN_LICENSES {
        if license.marks.iter().all(|mark| folded.contains(mark)) {
            for sentence in license.harmless {
                folded = folded.replace(sentence, " ");
            }
        }
    }
    KEYWORDS.into_iter().find(|keyword| {
        folded.match_indices(keyword).any(|(at, _)| !folded[..at].ends_with(|c: char| c.is_alphanumeric()))
    })
}

/// Reads the licence files at the root of one snapshot.
///
/// # Errors
/// When a licence file is there and cannot be read: then nobody knows.
pub fn look(snapshot: &Path) -> io::Result<Option<Gated>> {
    for name in LICENSE_FILES {
        let path = snapshot.join(name);
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() => {}
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        }
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(super::read::open_quietly(&path)?, MAX_SIZE), &mut bytes)?;
        if let Some(keyword) = keyword_in(&String::from_utf8_lossy(&bytes)) {
            return Ok(Some(Gated { file: name.to_string(), keyword }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_are_found() {
        assert_eq!(keyword_in("META LLAMA 3 COMMUNITY LICENSE AGREEMENT"), Some("agreement"));
        assert_eq!(keyword_in("You\n must  accept this"), Some("you must accept"));
        assert_eq!(keyword_in("This is a gated model"), Some("gated"));
        assert_eq!(keyword_in("Works may be aggregated; you are obligated"), None);
        assert_eq!(keyword_in("In case of a disagreement between the translation and the original"), None);
        assert_eq!(keyword_in("(agreements with others)"), Some("agreement"));
    }

    #[test]
    fn an_open_licence_is_open_and_additions_still_count() {
        let apache = "Apache License\n Version 2.0, January 2004\n\
                      TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION\n\
                      nothing herein shall supersede or modify the terms of any\n separate license agreement you may have \
                      executed with Licensor regarding such Contributions.";
        assert_eq!(keyword_in(apache), None);
        assert_eq!(keyword_in(&format!("{apache}\nYou must accept our terms.")), Some("you must accept"));
        assert_eq!(
            keyword_in("the terms of any separate license agreement you may have executed with licensor"),
            Some("agreement")
        );
        assert_eq!(keyword_in("MIT License\nPermission is hereby granted, free of charge"), None);
    }
}
