//! Variable-length integers of records: zigzag, then seven bits in each byte, the lowest first.
//!
//! What is read is a slice that shrinks from the front. Most varints of a record have one or two bytes, so those two
//! have a path of their own.

/// Most bytes that a 64-bit varint takes; a 32-bit one takes 5.
pub(super) const MAX_BYTES: usize = 10;

const MORE: u8 = 0x80;

/// The 32-bit varint at the front of `input`, which is moved behind it. None when the input ends before it does, or
/// when it does not fit into 32 bits.
#[inline(always)]
pub(super) fn read_i32(input: &mut &[u8]) -> Option<i32> {
    let bits = match **input {
        [a, ref rest @ ..] if a < MORE => {
            *input = rest;
            u32::from(a)
        }
        [a, b, ref rest @ ..] if b < MORE => {
            *input = rest;
            u32::from(a & !MORE) | u32::from(b) << 7
        }
        // More than 32 bits do not come out of this: it was asked for 5 bytes, the last with 4 bits.
        _ => {
            let (bits, rest) = read_long(input, 5, 0x0f)?;
            *input = rest;
            u32::try_from(bits).ok()?
        }
    };
    Some((bits >> 1).cast_signed() ^ -(bits & 1).cast_signed())
}

/// The 64-bit varint at the front of `input`, which is moved behind it. None when the input ends before it does, or
/// when it does not fit into 64 bits.
#[inline(always)]
pub(super) fn read_i64(input: &mut &[u8]) -> Option<i64> {
    let bits = match **input {
        [a, ref rest @ ..] if a < MORE => {
            *input = rest;
            u64::from(a)
        }
        [a, b, ref rest @ ..] if b < MORE => {
            *input = rest;
            u64::from(a & !MORE) | u64::from(b) << 7
        }
        _ => {
            let (bits, rest) = read_long(input, MAX_BYTES, 0x01)?;
            *input = rest;
            bits
        }
    };
    Some((bits >> 1).cast_signed() ^ -(bits & 1).cast_signed())
}

/// A varint of at most `bytes` bytes, of which the last possible one is at most `last`, and what follows it. Given back
/// rather than moved in place: a slice whose address is passed on cannot stay in registers.
#[inline(never)]
fn read_long(input: &[u8], bytes: usize, last: u8) -> Option<(u64, &[u8])> {
    let mut bits = 0;
    for place in 0..bytes {
        let byte = *input.get(place)?;
        bits |= u64::from(byte & !MORE) << (7 * place);
        if byte < MORE {
            let rest = input.get(place + 1..)?;
            return (place + 1 < bytes || byte <= last).then_some((bits, rest));
        }
    }
    None
}

/// Appends `value` to `output`.
#[inline(always)]
pub(super) fn push_i64(output: &mut Vec<u8>, value: i64) {
    let mut bits = zigzag(value);
    while bits >= u64::from(MORE) {
        output.push(bits as u8 | MORE);
        bits >>= 7;
    }
    output.push(bits as u8);
}

/// How many bytes `value` takes.
#[inline(always)]
pub(super) fn len_i64(value: i64) -> usize {
    let significant = (u64::BITS - (zigzag(value) | 1).leading_zeros()) as usize;
    significant.div_ceil(7)
}

#[inline(always)]
const fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}
