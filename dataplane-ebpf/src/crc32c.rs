//! SCTP's checksum by its change (RFC 9260, appendix A), never by the full sum.
//!
//! A CRC is linear: what a changed word does to it depends on the change and on how many bytes follow, and on nothing
//! that those bytes say. So a new port costs arithmetic on 32 bits, however long the packet is.

/// The Castagnoli polynomial, its highest power in the lowest bit, as all of this file has it.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// Bits of a packet's length.
const LENGTH_BITS: usize = 16;
/// What as many zero bytes as each bit of a length stands for multiply by: x^8, x^16, x^32 and so on.
const STEPS: [u32; LENGTH_BITS] = {
    let mut steps = [1 << (31 - 8); LENGTH_BITS];
    let mut bit = 1;
    while bit < LENGTH_BITS {
        steps[bit] = multiply(steps[bit - 1], steps[bit - 1]);
        bit += 1;
    }
    steps
};

/// The product of two polynomials, reduced. No branches: one path is all that a verifier has to walk.
#[inline(always)]
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 32;
    while bit > 0 {
        bit -= 1;
        product ^= b & 0_u32.wrapping_sub(a >> bit & 1);
        b = b >> 1 ^ POLYNOMIAL & 0_u32.wrapping_sub(b & 1);
    }
    product
}

/// The checksum of a packet of `length` bytes after its first four, read as a little-endian word like the checksum
/// itself, changed by `change` (old exclusive-or new).
#[inline(always)]
pub const fn apply(checksum: u32, change: u32, length: u16) -> u32 {
    let mut moved = change;
    let mut bit = 0;
    while bit < LENGTH_BITS {
        let taken = 0_u32.wrapping_sub(length as u32 >> bit & 1);
        moved = multiply(moved, STEPS[bit]) & taken | moved & !taken;
        bit += 1;
    }
    checksum ^ moved
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    /// Bit by bit, as the standard has it.
    fn full(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            }
        }
        !crc
    }

    #[test]
    fn the_yardstick_is_crc32c() {
        assert_eq!(full(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_change_is_what_the_full_sum_says() {
        for length in [4_u16, 5, 12, 16, 63, 64, 1_500, 9_000, 65_535] {
            let mut bytes: std::vec::Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            let before = full(&bytes);
            let old = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            bytes[..4].copy_from_slice(&[0x9c, 0x40, 0x1f, 0x90]);
            let new = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            assert_eq!(apply(before, old ^ new, length), full(&bytes), "{length} bytes");
        }
    }
}
