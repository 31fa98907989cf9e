//! Structures of the interface, byte by byte: fields in order, little-endian, padding named.

/// Builds a structure of `N` bytes.
#[derive(Debug)]
pub(super) struct Fields<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Fields<N> {
    pub(super) const fn new() -> Self {
        Self { bytes: [0; N], at: 0 }
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
        self
    }

    pub(super) fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Leaves `count` bytes zero.
    pub(super) fn pad(mut self, count: usize) -> Self {
        self.at += count;
        debug_assert!(self.at <= N);
        self
    }

    /// The structure; what was not filled is zero.
    pub(super) const fn done(self) -> [u8; N] {
        self.bytes
    }
}

/// Takes the 64-bit words of a structure.
pub(super) fn words<const BYTES: usize, const WORDS: usize>(bytes: [u8; BYTES]) -> [u64; WORDS] {
    const { assert!(BYTES == WORDS * 8) }
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}
