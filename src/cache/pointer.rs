//! LFS and Xet pointer files: small text files that stand in for the real content. Not pushed unless `cache.sync_xet`
//! is set.

/// Largest content that can be a pointer, in bytes (0.1.0's rule).
pub const MAX_SIZE: u64 = 1024;

/// Returns whether the content is a pointer by 0.1.0's rule: at most [`MAX_SIZE`] bytes, with one of the markers.
pub fn is_pointer(content: &[u8]) -> bool {
    let has = |marker: &[u8]| content.windows(marker.len()).any(|window| window == marker);
    content.len() as u64 <= MAX_SIZE && (has(b"version https://") || has(b"oid sha256:") || has(b"oid xet:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_recognised() {
        assert!(is_pointer(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n"));
        assert!(is_pointer(b"# xet version 0\noid xet:ab\n"));
        assert!(!is_pointer(b"{}"));
        assert!(!is_pointer(&[b"version https://".as_slice(), &[b'x'; 1024]].concat()));
    }
}
