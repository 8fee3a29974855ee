//! Totals of blobs.

use serde::Serialize;

/// A number of blobs, and their total size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// The number of blobs.
    pub blobs: u64,
    /// Their total size in bytes.
    pub bytes: u64,
}

impl Amount {
    /// Adds one blob. Sizes may come from strangers, so that a sum stops at its maximum.
    pub fn add(&mut self, bytes: u64) {
        self.blobs += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Subtracts one blob.
    pub fn take(&mut self, bytes: u64) {
        self.blobs = self.blobs.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Amount) {
        self.blobs += other.blobs;
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}
