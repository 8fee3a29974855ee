//! The Xet hash of a file, by which huggingface_hub's cache-wide store names its payloads.
//!
//! As in the Xet specification (huggingface.co/docs/xet): the file is cut where its content says so, each chunk is hashed
//! with BLAKE3, and the hashes are combined in a tree whose shape depends on them. hf_xet's `hash_files` computes the same.

use std::io::{self, Read};

use crate::files::read_full;
use crate::model::ids::BlobId;

/// Smallest and largest chunk in bytes. Only the last one may be smaller.
const MIN_CHUNK: usize = 8 << 10;
const MAX_CHUNK: usize = 128 << 10;
/// A chunk ends where the rolling hash has none of these bits.
const MASK: u64 = 0xffff << 48;
/// Number of bytes that the rolling hash depends on.
const WINDOW: usize = 64;

/// The BLAKE3 key of chunks.
const CHUNK_KEY: [u8; 32] = [
    102, 151, 245, 119, 91, 149, 80, 222, 49, 53, 203, 172, 165, 151, 24, 28, 157, 228, 33, 16, 155, 235, 43, 88, 180,
    208, 176, 75, 147, 173, 242, 41,
];
/// The BLAKE3 key of inner nodes of the tree.
const NODE_KEY: [u8; 32] = [
    1, 126, 197, 199, 165, 71, 41, 150, 253, 148, 102, 102, 180, 138, 2, 230, 93, 221, 83, 111, 55, 199, 109, 210, 248,
    99, 82, 230, 74, 83, 113, 63,
];
/// The BLAKE3 key that turns the root into the file's hash.
const FILE_KEY: [u8; 32] = [0; 32];

/// A chunk or an inner node, with the number of bytes below it.
#[derive(Clone, Copy)]
struct Node {
    hash: [u8; 32],
    size: u64,
}

/// Returns the Xet hash of everything that the reader gives. Blocks.
///
/// # Errors
/// If the reader fails.
pub fn xet_hash(reader: impl Read) -> io::Result<BlobId> {
    let chunks = hash_chunks(reader)?;
    let hash = if chunks.is_empty() { [0; 32] } else { keyed(&FILE_KEY, &root_of(chunks)) };
    Ok(BlobId::Sha256(in_text_order(hash)))
}

fn keyed(key: &[u8; 32], bytes: &[u8]) -> [u8; 32] {
    *blake3::keyed_hash(key, bytes).as_bytes()
}

/// Returns the bytes in the order in which a Xet hash is written: as four little-endian numbers.
fn in_text_order(mut hash: [u8; 32]) -> [u8; 32] {
    hash.as_chunks_mut::<8>().0.iter_mut().for_each(|word| word.reverse());
    hash
}

fn hash_chunks(mut reader: impl Read) -> io::Result<Vec<Node>> {
    let mut chunks = Vec::new();
    let mut buffer = vec![0; 2 * MAX_CHUNK];
    let (mut start, mut end) = (0, 0);
    loop {
        if end - start < MAX_CHUNK {
            buffer.copy_within(start..end, 0);
            (start, end) = (0, end - start);
            end += read_full(&mut reader, &mut buffer[end..])?;
        }
        if start == end {
            return Ok(chunks);
        }
        let length = chunk_length(&buffer[start..end]);
        let hash = keyed(&CHUNK_KEY, &buffer[start..start + length]);
        chunks.push(Node { hash, size: length as u64 });
        start += length;
    }
}

/// Returns the length of the first chunk. `bytes` must reach to the end of the largest possible one, or of the file.
fn chunk_length(bytes: &[u8]) -> usize {
    let most = bytes.len().min(MAX_CHUNK);
    let mut hash = 0u64;
    for (at, byte) in bytes[..most].iter().enumerate().skip(MIN_CHUNK - WINDOW - 1) {
        hash = (hash << 1).wrapping_add(gearhash::DEFAULT_TABLE[usize::from(*byte)]);
        if at + 1 >= MIN_CHUNK && hash & MASK == 0 {
            return at + 1;
        }
    }
    most
}

fn root_of(mut nodes: Vec<Node>) -> [u8; 32] {
    while nodes.len() > 1 {
        let mut parents = Vec::new();
        let mut rest = nodes.as_slice();
        while !rest.is_empty() {
            let (children, others) = rest.split_at(children_count(rest));
            parents.push(parent_of(children));
            rest = others;
        }
        nodes = parents;
    }
    nodes[0].hash
}

/// Returns how many of the nodes get the first parent: from three to nine, as their hashes say.
fn children_count(nodes: &[Node]) -> usize {
    let most = nodes.len().min(9);
    let ends = |node: &Node| node.hash[24].is_multiple_of(4);
    (2..most).find(|at| ends(&nodes[*at])).map_or(most, |at| at + 1)
}

fn parent_of(children: &[Node]) -> Node {
    let line = |node: &Node| format!("{} : {}\n", BlobId::Sha256(in_text_order(node.hash)), node.size);
    let text: String = children.iter().map(line).collect();
    Node { hash: keyed(&NODE_KEY, text.as_bytes()), size: children.iter().map(|node| node.size).sum() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that both sides can make: those of a linear congruential generator.
    fn bytes(length: usize) -> Vec<u8> {
        let mut state = 1u32;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    #[test]
    fn hashes_equal_those_of_hf_xet() {
        for (length, expected) in [
            (1, "c5033a5ab3563b4e2876d6fbc64e46e07538a0000e6f18c953e4eed05920bf07"),
            (100, "4696d983b606b287082eef9872fb25ae7d97848e7ca047dc5d65a586d115c1eb"),
            (8191, "8a638cff7699af18a7f42ca7afbc2c86e1cfc5da8147a781fdcef2a46890c7ba"),
            (8192, "bda3ceee112fed827fb30e728596c3c4fc1a98c89d5c9db9c5d338ff8a63f259"),
            (8193, "e78c20366ec72547223c0fa752e8437cefeba79f295bdb85c43b7a9b9f9dce05"),
            (65536, "03b7901db40d772278809d8fb6bbe893ef62e9a8a17047b6db8d9404e1bfcb5d"),
            (131072, "927a72308ff32dc51dc6b50a6731cd0d3de92d8fb1aeaa1fd2ff54d2b14cf684"),
            (131073, "604490b94603e5d951c14a8128a39f9f535857184d3baf9acff3e60d2fb262d8"),
            (200000, "8fddf0eb221787fecc5aaba88e10882f6392de376b716f8634041aa7d5286199"),
            (1000000, "cb96fe356439a5371453a000a1da8bdd26104f155bdbc4e0b503576d31c643f7"),
            (5000000, "5d2c583336573daec5b1258af4b441d795a69bb3fcb4f93636a6ced0d7096fa6"),
        ] {
            assert_eq!(xet_hash(bytes(length).as_slice()).unwrap().to_string(), expected, "{length}");
        }
        let zeros = vec![0; 1_000_000];
        assert_eq!(
            xet_hash(zeros.as_slice()).unwrap().to_string(),
            "c0c85185f4307d40facfd366573176e54fc9c76041e44e32d52489780a6d1eaa"
        );
    }
}
