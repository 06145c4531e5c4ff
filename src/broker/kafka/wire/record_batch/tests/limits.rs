//! Compressed bytes that become too many, and streams that this codec does not write itself.

use std::io::Write;

use super::super::compression::{Stopped, inflate};
use super::*;

/// What a bomb becomes: 64 MiB of zeros.
const BOMB: usize = 64 << 20;
/// What it may become.
const SMALL: usize = 1 << 20;

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn lz4(content: &[u8], size: lz4_flex::frame::BlockSize, mode: lz4_flex::frame::BlockMode) -> Vec<u8> {
    let frame = lz4_flex::frame::FrameInfo::new().block_size(size).block_mode(mode).block_checksums(true);
    let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(frame.content_checksum(true), Vec::new());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// As a producer writes that does not know the size beforehand.
fn zstd_stream(content: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn snappy_block(content: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(content).unwrap()
}

fn xerial(blocks: &[&[u8]]) -> Vec<u8> {
    let mut stream = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
    for block in blocks {
        stream.extend_from_slice(&(block.len() as u32).to_be_bytes());
        stream.extend_from_slice(block);
    }
    stream
}

/// The records of a batch, compressed by someone else.
fn with_stream(events: &[Event], codec: Compression, compress: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut batch = written(events, Compression::None);
    let stream = compress(&batch[HEADER_BYTES..]);
    batch.truncate(HEADER_BYTES);
    batch.extend_from_slice(&stream);
    let counted = batch.len() as i32 - 12;
    batch[8..12].copy_from_slice(&counted.to_be_bytes());
    batch[22] = codec as u8;
    signed(batch)
}

#[test]
fn bombs_stop_at_the_limit() {
    use lz4_flex::frame::{BlockMode, BlockSize};
    let zeros = vec![0; BOMB];
    let half = snappy_block(&zeros[..SMALL / 2]);
    let halves: Vec<&[u8]> = vec![&half; 100];
    let frames = zstd_stream(&zeros[..SMALL / 2]).repeat(100);
    for (codec, name, bomb) in [
        (Compression::Gzip, "one stream", gzip(&zeros)),
        (Compression::Gzip, "many streams", gzip(&zeros[..SMALL / 2]).repeat(100)),
        (Compression::Snappy, "one block", snappy_block(&zeros)),
        (Compression::Snappy, "many blocks", xerial(&halves)),
        (Compression::Lz4, "small blocks", lz4(&zeros, BlockSize::Max64KB, BlockMode::Independent)),
        (Compression::Lz4, "large blocks", lz4(&zeros, BlockSize::Max4MB, BlockMode::Linked)),
        (Compression::Zstd, "size told", zstd::bulk::compress(&zeros, 3).unwrap()),
        (Compression::Zstd, "size untold", zstd_stream(&zeros)),
        (Compression::Zstd, "many frames", frames),
    ] {
        for limit in [0, 1, 1000, SMALL] {
            let stopped = inflate(&bomb, codec, limit);
            assert!(matches!(stopped, Err(Stopped::TooLarge)), "{codec}, {name}, {limit}");
        }
        let mut batch = forged(&bomb, 1);
        batch[22] = codec as u8;
        let error = opened(&signed(batch), SMALL).unwrap_err();
        assert_eq!(error, BatchError::TooLarge { offset: 0, limit: SMALL }, "{codec}, {name}");
    }
}

#[test]
fn a_snappy_block_that_promises_much_gets_no_memory() {
    // 256 MiB in six bytes.
    let lie = [0x80, 0x80, 0x80, 0x80, 0x01, 0x00];
    assert!(matches!(inflate(&lie, Compression::Snappy, 1 << 30), Err(Stopped::Broken(_))));
}

#[test]
fn the_limit_itself_is_allowed_and_no_buffer_passes_it() {
    for size in [1, 1000, 4096, 4097, 65_536, 100_000, 1_000_003] {
        let content: Vec<u8> = (0..size).map(|at| (at / 100) as u8).collect();
        for (codec, stream) in [
            (Compression::Gzip, gzip(&content)),
            (Compression::Snappy, snappy_block(&content)),
            (
                Compression::Snappy,
                xerial(
                    &content
                        .chunks(777)
                        .map(snappy_block)
                        .collect::<Vec<_>>()
                        .iter()
                        .map(Vec::as_slice)
                        .collect::<Vec<_>>(),
                ),
            ),
            (Compression::Lz4, lz4(&content, lz4_flex::frame::BlockSize::Max64KB, lz4_flex::frame::BlockMode::Linked)),
            (Compression::Zstd, zstd_stream(&content)),
        ] {
            let output = inflate(&stream, codec, size).unwrap();
            assert!(output == content, "{codec}, {size}");
            assert!(output.capacity() <= size + 1, "{codec}: {} bytes reserved of {size}", output.capacity());
            assert!(matches!(inflate(&stream, codec, size - 1), Err(Stopped::TooLarge)), "{codec}, {size}");
        }
    }
}

#[test]
fn streams_of_other_writers_are_read() {
    use lz4_flex::frame::{BlockMode, BlockSize};
    let events: Vec<Event> =
        (0..2000).map(|row| Event::new(row, &format!("key-{row}"), &"value ".repeat(20))).collect();
    let expected = numbered(&events);
    let read = |codec, compress: &dyn Fn(&[u8]) -> Vec<u8>| {
        read(&with_stream(&events, codec, compress), LIMIT).unwrap().unwrap()
    };
    // librdkafka writes a bare block.
    assert_eq!(read(Compression::Snappy, &snappy_block), expected);
    assert_eq!(read(Compression::Lz4, &|bytes| lz4(bytes, BlockSize::Max64KB, BlockMode::Linked)), expected);
    assert_eq!(read(Compression::Lz4, &|bytes| lz4(bytes, BlockSize::Max4MB, BlockMode::Independent)), expected);
    assert_eq!(read(Compression::Zstd, &zstd_stream), expected);
    // A window larger than what streaming decoders accept by themselves.
    assert_eq!(read(Compression::Zstd, &|bytes| zstd::bulk::compress(bytes, 22).unwrap()), expected);
    let halves = |compress: fn(&[u8]) -> Vec<u8>| {
        move |bytes: &[u8]| {
            let (first, second) = bytes.split_at(bytes.len() / 2);
            [compress(first), compress(second)].concat()
        }
    };
    assert_eq!(read(Compression::Gzip, &halves(gzip)), expected);
    assert_eq!(read(Compression::Zstd, &halves(zstd_stream)), expected);
}

#[test]
fn what_java_wrote_with_snappy_is_read_and_written() {
    let stream = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01\0\0\0\x0f\x0d\x30\x18\0\0\0\x01\x0csdfdsf\0";
    let mut batch = forged(stream, 1);
    batch[22] = Compression::Snappy as u8;
    let events = read(&signed(batch), LIMIT).unwrap().unwrap();
    let expected = Event { timestamp: 0, key: None, value: Some(b"sdfdsf".into()), headers: Vec::new() };
    assert_eq!(events, [(0, expected.clone())]);
    assert_eq!(written(&[expected], Compression::Snappy)[HEADER_BYTES..], *stream);
}

#[test]
fn broken_streams_name_their_codec() {
    for codec in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let mut batch = forged(b"this is no stream of any codec, and never was", 1);
        batch[22] = codec as u8;
        batch[7] = 42;
        let error = opened(&signed(batch), LIMIT).unwrap_err();
        assert!(matches!(error, BatchError::Codec { offset: 42, codec: named, .. } if named == codec), "{error}");
        assert!(error.to_string().contains(&format!("offset 42 cannot be decompressed by {codec}: ")), "{error}");
    }
}

#[test]
fn lz4_is_written_as_java_reads_it() {
    let batch = written(&[Event::new(0, "k", &"v".repeat(200_000))], Compression::Lz4);
    // The magic number, then: version 1, blocks independent, no checksums, no size; blocks of 64 KB.
    assert_eq!(batch[HEADER_BYTES..HEADER_BYTES + 6], [0x04, 0x22, 0x4d, 0x18, 0x60, 0x40]);
}
