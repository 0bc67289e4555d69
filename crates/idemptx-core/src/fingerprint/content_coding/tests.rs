use std::io::Write as _;

use flate2::write::ZlibEncoder;
use flate2::{Compression, GzBuilder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::*;

const TEXT: &[u8] = br#"{"account":"a-1","items":["tea","tea","tea","coffee"],"amount":100}"#;

/// The text under each coding, encoded in two ways.
fn encoded() -> [(ContentCoding, Vec<u8>, Vec<u8>); 4] {
    [
        (ContentCoding::Gzip, gzip(TEXT, 1), two_members(TEXT)),
        (ContentCoding::Deflate, zlib(TEXT, 0), zlib(TEXT, 9)),
        (ContentCoding::Brotli, hex(BROTLI_1), hex(BROTLI_11)),
        (
            ContentCoding::Zstd,
            compress_to_vec(TEXT, CompressionLevel::Uncompressed),
            [
                compress_to_vec(&TEXT[..20], CompressionLevel::Fastest),
                compress_to_vec(&TEXT[20..], CompressionLevel::Fastest),
            ]
            .concat(),
        ),
    ]
}

#[test]
fn each_coding_is_undone() {
    for (coding, one, other) in encoded() {
        assert_ne!(one, other, "{coding:?}");
        for body in [one, other] {
            assert_eq!(coding.decode(&body).as_deref(), Ok(TEXT), "{coding:?}");
        }
    }
}

#[test]
fn what_is_cut_off_or_followed_by_something_is_malformed() {
    for (coding, body, _) in encoded() {
        for end in 1..body.len() {
            assert_eq!(
                coding.decode(&body[..end]),
                Err(Undecodable::Malformed),
                "{coding:?} {end}"
            );
        }
        let longer = [&body[..], b"x"].concat();
        assert_eq!(coding.decode(&longer), Err(Undecodable::Malformed), "{coding:?}");
        assert_eq!(coding.decode(TEXT), Err(Undecodable::Malformed), "{coding:?}");
    }
}

#[test]
fn a_bomb_is_recognised_before_it_unfolds() {
    // Each is of megabytes or more, of which the first is decoded.
    let zeros = vec![0; 4 << 20];
    for (coding, body) in [
        (ContentCoding::Gzip, gzip(&zeros, 0)),
        (ContentCoding::Deflate, zlib(&zeros, 9)),
        (ContentCoding::Brotli, hex(BROTLI_BOMB)),
        (ContentCoding::Zstd, zstd_bomb(0x50, 10_000)),
    ] {
        assert_eq!(coding.decode(&body), Err(Undecodable::Bomb), "{coding:?}");
    }
}

#[test]
fn a_window_of_more_than_8_mib_is_not_decoded() {
    let [within, beyond] = [0x68, 0x69].map(|window| zstd_bomb(window, 8));
    assert_eq!(ContentCoding::Zstd.decode(&within).map(|it| it.len()), Ok(1 << 20));
    assert_eq!(ContentCoding::Zstd.decode(&beyond), Err(Undecodable::Malformed));
}

#[test]
fn content_beyond_the_limit_is_not_decoded() {
    for (coding, body, _) in encoded() {
        let within = coding.decode_within(&body, TEXT.len());
        assert_eq!(within.as_deref(), Ok(TEXT), "{coding:?}");
        let beyond = coding.decode_within(&body, TEXT.len() - 1);
        assert_eq!(beyond, Err(Undecodable::TooLarge), "{coding:?}");
    }
}

#[test]
fn a_coding_is_one_known_token() {
    let of = |lines: &[&str]| {
        let lines = lines.iter().map(|line| (CONTENT_ENCODING, line.parse().unwrap()));
        ContentCoding::of(&lines.collect())
    };
    assert_eq!(of(&["GZip"]), Some(ContentCoding::Gzip));
    assert_eq!(of(&[" x-gzip "]), Some(ContentCoding::Gzip));
    assert_eq!(of(&["deflate"]), Some(ContentCoding::Deflate));
    assert_eq!(of(&["br"]), Some(ContentCoding::Brotli));
    assert_eq!(of(&["zstd"]), Some(ContentCoding::Zstd));
    for none in [&[][..], &["identity"], &["gzip, gzip"], &["gzip", "gzip"], &["compress"]] {
        assert_eq!(of(none), None, "{none:?}");
    }
}

/// Compresses with another time in the header.
pub(in crate::fingerprint) fn gzip(content: &[u8], time: u32) -> Vec<u8> {
    let mut encoder = GzBuilder::new().mtime(time).write(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn two_members(content: &[u8]) -> Vec<u8> {
    let (first, rest) = content.split_at(content.len() / 2);
    [gzip(first, 2), gzip(rest, 3)].concat()
}

fn zlib(content: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// A frame of blocks that each repeat one byte 128 KiB times (RFC 8878 §3.1.1.2).
fn zstd_bomb(window: u8, blocks: u32) -> Vec<u8> {
    let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0x00, window];
    for block in 1..=blocks {
        let header = (128 << 10) << 3 | 1 << 1 | u32::from(block == blocks);
        frame.extend(&header.to_le_bytes()[..3]);
        frame.push(b'a');
    }
    frame
}

fn hex(digits: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(digit).collect()
}

/// `TEXT` at quality 1.
const BROTLI_1: &str = "0b21807b226163636f756e74223a22612d31222c226974656d73223a5b22746561222c22746561\
    222c22746561222c22636f66666565225d2c22616d6f756e74223a3130307d03";
/// `TEXT` at quality 11.
const BROTLI_11: &str = "1b4200082d8e77123e1c16e26badda3018ad4562b6f66698085db2e874258c485fb694b5c10\
    61cb8041ac8c0db4cc3061c261827f39e2b14d3af3981c7aa714d0c";
/// 64 MiB of zeros.
const BROTLI_BOMB: &str = "cbffff3ff82700e2b14020f7fe8fffff7ff04f00c4611180eefd1fffffffe09f0088c30200\
    ddfb3ffeffffc13f0110870500baf77ffcffff837f02200e0b0074effff8ffff07ff04401c1600e8defff1ffff0ffe09\
    80382c00d0bdffcbffff3ffc1300715800a07bff07";
