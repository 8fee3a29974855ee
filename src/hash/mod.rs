//! Hashing bytes into a [`BlobId`]: the proof that a blob is what its name says.

mod lanes;
mod sha256;

use sha1::Digest;

use crate::model::ids::BlobId;
pub use lanes::{MOST as MOST_TOGETHER, is_faster as is_faster_together};
use sha256::Sha256;

/// The MD5 in hexadecimal digits: what most stores give as the ETag of one PUT with this content.
pub fn md5_hex(content: &[u8]) -> String {
    md5::Md5::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Computes a blob's name from its bytes, fed in order.
#[derive(Clone)]
pub struct BlobHasher(Algorithm);

#[derive(Clone)]
enum Algorithm {
    Sha1(sha1::Sha1),
    Sha256(Sha256),
}

impl BlobHasher {
    /// A hasher of the same algorithm as `like`. `size` is the blob's length in bytes: git hashes it first.
    pub fn like(like: &BlobId, size: u64) -> Self {
        match like {
            BlobId::Sha1(_) => Self::git(size),
            BlobId::Sha256(_) => Self::sha256(),
        }
    }

    /// git's blob hash, `sha1("blob <size>\0" + bytes)`.
    pub fn git(size: u64) -> Self {
        let mut sha1 = sha1::Sha1::new();
        sha1.update(format!("blob {size}\0").as_bytes());
        BlobHasher(Algorithm::Sha1(sha1))
    }

    /// Plain sha256.
    pub fn sha256() -> Self {
        BlobHasher(Algorithm::Sha256(Sha256::new()))
    }

    /// Feeds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Algorithm::Sha1(sha1) => sha1.update(bytes),
            Algorithm::Sha256(sha256) => sha256.update(bytes),
        }
    }

    /// Feeds the next bytes of several blobs. On processors where [`is_faster_together`] that is much faster than
    /// feeding one after the other, best with [`MOST_TOGETHER`] blobs and the same number of bytes for each.
    pub fn update_together(feeds: &mut [(&mut BlobHasher, &[u8])]) {
        let mut messages = Vec::with_capacity(feeds.len());
        for (hasher, bytes) in feeds {
            match &mut hasher.0 {
                Algorithm::Sha1(sha1) => sha1.update(bytes),
                Algorithm::Sha256(sha256) => messages.push((sha256, *bytes)),
            }
        }
        Sha256::update_together(&mut messages);
    }

    /// The name of what was fed.
    pub fn finish(self) -> BlobId {
        match self.0 {
            Algorithm::Sha1(sha1) => BlobId::Sha1(sha1.finalize().into()),
            Algorithm::Sha256(sha256) => BlobId::Sha256(sha256.finish()),
        }
    }
}

/// The name of `bytes` by the algorithm of `like`.
pub fn blob_id_of(like: &BlobId, bytes: &[u8]) -> BlobId {
    let mut hasher = BlobHasher::like(like, bytes.len() as u64);
    hasher.update(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_git_and_sha256sum() {
        // `printf 'hello\n' | git hash-object --stdin` and `| sha256sum`
        let git: BlobId = "ce013625030ba8dba906f756967f9e9ca394464a".parse().unwrap();
        let sha256: BlobId = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03".parse().unwrap();
        assert_eq!(blob_id_of(&git, b"hello\n"), git);
        assert_eq!(blob_id_of(&sha256, b"hello\n"), sha256);
    }
}
