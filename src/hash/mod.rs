//! Hashes bytes into a [`BlobId`], which proves that a blob matches its name.

mod lanes;
mod sha256;
mod xet;

use std::sync::OnceLock;

use sha1::Digest;

use crate::model::ids::BlobId;
pub use lanes::MAX_LANES;
use sha256::Sha256;
pub use xet::xet_hash;

/// The speed-up from which lockstep pays although blobs have to be read back for it. Reading back takes 0.1 to 0.2 of the
/// time of hashing, and what is read is in no cache that it was in when it arrived.
const WORTHWHILE: f64 = 1.4;

/// Returns whether this processor hashes several blobs in lockstep so much faster that it pays to read them back for it.
/// Measured once per process, which takes about a millisecond.
pub fn lockstep_pays() -> bool {
    static PAYS: OnceLock<bool> = OnceLock::new();
    *PAYS.get_or_init(|| {
        let speedup = if lanes::is_supported() { sha256::lockstep_speedup() } else { 1.0 };
        tracing::debug!(speedup, "measured hashing in lockstep");
        speedup >= WORTHWHILE
    })
}

/// Returns the number of blobs to hash in lockstep on this machine, at most [`MAX_LANES`]; 1 if it does not pay. With many
/// cores, each blob can use its own.
pub fn lanes() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let lanes = (2 * MAX_LANES / cores).clamp(1, MAX_LANES);
    if lanes > 1 && lockstep_pays() { lanes } else { 1 }
}

/// Returns bytes in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the MD5 in hexadecimal digits, which most stores use as the ETag of an object uploaded by a single PUT.
pub fn md5_hex(content: &[u8]) -> String {
    hex(&md5::Md5::digest(content))
}

/// Whether this looks like an MD5 in hexadecimal digits, in lower or upper case.
pub fn is_md5_hex(text: &str) -> bool {
    is_hex(text, 32)
}

/// Whether a text consists of this many hexadecimal digits, in lower or upper case.
pub fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Computes a blob's name from its bytes, which must be fed in order.
#[derive(Clone)]
pub struct BlobHasher(Algorithm);

#[derive(Clone)]
enum Algorithm {
    Sha1(sha1::Sha1),
    Sha256(Sha256),
}

impl BlobHasher {
    /// Creates a hasher with the same algorithm as `like`. `size` is the blob's length in bytes, which git hashes
    /// first.
    pub fn like(like: &BlobId, size: u64) -> Self {
        match like {
            BlobId::Sha1(_) => Self::git(size),
            BlobId::Sha256(_) => Self::sha256(),
        }
    }

    /// Creates a hasher for git's blob hash, `sha1("blob <size>\0" + bytes)`.
    pub fn git(size: u64) -> Self {
        let mut sha1 = sha1::Sha1::new();
        sha1.update(format!("blob {size}\0").as_bytes());
        BlobHasher(Algorithm::Sha1(sha1))
    }

    /// Creates a hasher for plain sha256.
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

    /// Feeds the next bytes of several blobs. If [`lockstep_pays`], this is much faster than feeding them one after the
    /// other, ideally with [`MAX_LANES`] blobs and the same number of bytes for each.
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

    /// Returns the name of the bytes that were fed.
    pub fn finish(self) -> BlobId {
        match self.0 {
            Algorithm::Sha1(sha1) => BlobId::Sha1(sha1.finalize().into()),
            Algorithm::Sha256(sha256) => BlobId::Sha256(sha256.finish()),
        }
    }
}

/// Returns the name of `bytes` by the algorithm of `like`.
pub fn blob_id_of(like: &BlobId, bytes: &[u8]) -> BlobId {
    let mut hasher = BlobHasher::like(like, bytes.len() as u64);
    hasher.update(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_git_and_sha256sum() {
        // `printf 'hello\n' | git hash-object --stdin` and `| sha256sum`
        let git: BlobId = "ce013625030ba8dba906f756967f9e9ca394464a".parse().unwrap();
        let sha256: BlobId = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03".parse().unwrap();
        assert_eq!(blob_id_of(&git, b"hello\n"), git);
        assert_eq!(blob_id_of(&sha256, b"hello\n"), sha256);
    }
}
