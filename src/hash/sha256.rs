//! Streaming SHA-256 (FIPS 180-4) with an accessible state, so that several messages can be hashed in lockstep. Blocks
//! are compressed by the `sha2` crate, or by [`lanes`] for several messages.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::lanes::{self, Block, MAX_LANES, State};

const BLOCK: usize = 64;

/// Measures how many times faster [`MAX_LANES`] messages are hashed in lockstep than one after the other. The best of
/// several short attempts counts, so that a busy machine distorts the result less: with other work on a core that shares
/// its execution units, there are no gaps to fill.
pub(super) fn lockstep_speedup() -> f64 {
    const SAMPLE: [u8; 16 << 10] = [0x5a; 16 << 10];
    const ATTEMPTS: u32 = 12;
    let mut best = [Duration::MAX; 2];
    for _ in 0..ATTEMPTS {
        for (in_lockstep, best) in best.iter_mut().enumerate() {
            let mut hashers: [Sha256; MAX_LANES] = std::array::from_fn(|_| Sha256::new());
            let mut messages: Vec<_> = hashers.iter_mut().map(|hasher| (hasher, black_box(&SAMPLE[..]))).collect();
            let start = Instant::now();
            match in_lockstep {
                0 => messages.iter_mut().for_each(|(hasher, bytes)| hasher.update(bytes)),
                _ => Sha256::update_together(&mut messages),
            }
            *best = start.elapsed().min(*best);
            black_box(hashers);
        }
    }
    best[0].as_secs_f64() / best[1].as_secs_f64().max(f64::MIN_POSITIVE)
}

/// The intermediate hash of a message.
#[derive(Clone)]
pub(super) struct Sha256 {
    state: State,
    /// Number of bytes so far.
    length: u64,
    /// The current block, of which the first [`Self::filled`] bytes are set.
    partial: Block,
}

impl Sha256 {
    pub(super) fn new() -> Self {
        let state =
            [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
        Sha256 { state, length: 0, partial: [0; BLOCK] }
    }

    /// Returns the number of bytes in the current, incomplete block.
    fn filled(&self) -> usize {
        (self.length % BLOCK as u64) as usize
    }

    /// Completes the current block as far as `bytes` reach, and returns the rest of them.
    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let filled = self.filled();
        if filled == 0 {
            return bytes;
        }
        let (head, rest) = bytes.split_at(bytes.len().min(BLOCK - filled));
        self.partial[filled..filled + head.len()].copy_from_slice(head);
        self.length += head.len() as u64;
        if self.filled() == 0 {
            sha2::block_api::compress256(&mut self.state, &[self.partial]);
        }
        rest
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        let (blocks, rest) = self.fill(bytes).as_chunks::<BLOCK>();
        if !blocks.is_empty() {
            sha2::block_api::compress256(&mut self.state, blocks);
            self.length += (blocks.len() * BLOCK) as u64;
        }
        if !rest.is_empty() {
            self.partial[..rest.len()].copy_from_slice(rest);
            self.length += rest.len() as u64;
        }
    }

    /// Feeds all bytes of each message, in lockstep up to the length of the shortest.
    pub(super) fn update_together(messages: &mut [(&mut Sha256, &[u8])]) {
        for group in messages.chunks_mut(MAX_LANES) {
            group.iter_mut().for_each(|(hasher, bytes)| *bytes = hasher.fill(bytes));
            let blocks = group.iter().map(|(_, bytes)| bytes.len() / BLOCK).min().unwrap_or(0);
            match group.len() {
                2 => Self::update_in_lockstep::<2>(group, blocks),
                3 => Self::update_in_lockstep::<3>(group, blocks),
                4 => Self::update_in_lockstep::<4>(group, blocks),
                _ => {}
            }
            group.iter_mut().for_each(|(hasher, bytes)| hasher.update(bytes));
        }
    }

    fn update_in_lockstep<const N: usize>(messages: &mut [(&mut Sha256, &[u8])], count: usize) {
        let mut states: [State; N] = std::array::from_fn(|lane| messages[lane].0.state);
        let blocks: [&[Block]; N] = std::array::from_fn(|lane| &messages[lane].1.as_chunks().0[..count]);
        lanes::compress(&mut states, blocks);
        for ((hasher, bytes), state) in messages.iter_mut().zip(states) {
            hasher.state = state;
            hasher.length += (count * BLOCK) as u64;
            *bytes = &bytes[count * BLOCK..];
        }
    }

    pub(super) fn finish(mut self) -> [u8; 32] {
        let bits = self.length * 8;
        let filled = self.filled();
        // Padding: a one bit, zeros, and the length in the last eight bytes of a block.
        let zeros = (2 * BLOCK - 9 - filled) % BLOCK;
        self.update(&[0x80]);
        self.update(&[0; BLOCK][..zeros]);
        self.update(&bits.to_be_bytes());
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::Digest;

    proptest! {
        /// The result equals that of the `sha2` crate, however messages are split, and whether they are hashed alone or
        /// in lockstep.
        #[test]
        fn hashes_equal_those_of_the_sha2_crate(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..1500), 1..7),
            cuts in proptest::collection::vec(0..700usize, 1..9),
        ) {
            let mut hashers = vec![Sha256::new(); messages.len()];
            let mut rest: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
            for (turn, cut) in cuts.iter().chain(&[usize::MAX]).enumerate() {
                let mut feeds = Vec::new();
                for (lane, (hasher, rest)) in hashers.iter_mut().zip(&mut rest).enumerate() {
                    let (now, later) = rest.split_at(cut.saturating_add(lane * turn).min(rest.len()));
                    *rest = later;
                    feeds.push((hasher, now));
                }
                match turn % 3 {
                    0 => feeds.iter_mut().for_each(|(hasher, bytes)| hasher.update(bytes)),
                    _ => Sha256::update_together(&mut feeds),
                }
            }
            for (hasher, message) in hashers.into_iter().zip(&messages) {
                let expected: [u8; 32] = sha2::Sha256::digest(message).into();
                prop_assert_eq!(hasher.finish(), expected);
            }
        }
    }

    #[test]
    fn every_length_around_a_block_is_padded_correctly() {
        for length in 0..200 {
            let message = vec![0xa5; length];
            let mut hasher = Sha256::new();
            hasher.update(&message);
            let expected: [u8; 32] = sha2::Sha256::digest(&message).into();
            assert_eq!(hasher.finish(), expected, "{length}");
        }
    }
}
