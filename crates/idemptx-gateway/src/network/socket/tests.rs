use std::io::IoSlice;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{COPIED_BYTES_MAX, Stream, joined};

#[test]
fn small_pieces_become_one_and_one_piece_stays_where_it_is() {
    let check = |pieces: &[&[u8]], expected: Option<&[u8]>| {
        let pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        assert_eq!(joined(&pieces, &mut [0; COPIED_BYTES_MAX]), expected, "{pieces:?}");
    };
    let large = [b'x'; COPIED_BYTES_MAX + 1];
    check(&[], Some(b""));
    check(&[b"head"], Some(b"head"));
    check(&[&large], Some(&large));
    check(&[b"head", b"body"], Some(b"headbody"));
    check(&[b"", b"a", b"", b"bc"], Some(b"abc"));
    check(&[&large[..COPIED_BYTES_MAX - 1], b"x"], Some(&large[..COPIED_BYTES_MAX]));
    check(&[&large[..COPIED_BYTES_MAX], b"x"], None);
    check(&[b"", &large], None);
}

#[tokio::test]
async fn pieces_arrive_as_they_were_written_whatever_their_size() {
    let (written_to, mut reader) = UnixStream::pair().unwrap();
    let mut writer = Stream::Unix(written_to);
    let large: Vec<u8> = (0..1 << 20).map(|at| (at % 251) as u8).collect();
    let all = [&b"head"[..], b"body", b"head", &large, b"end"].concat();
    let write = async {
        let rounds: [&[&[u8]]; 3] = [&[b"head", b"body"], &[b"head", &large], &[b"end"]];
        for pieces in rounds {
            let mut pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            let mut left = &mut pieces[..];
            while !left.is_empty() {
                let written = writer.write_vectored(left).await.unwrap();
                IoSlice::advance_slices(&mut left, written);
            }
        }
    };
    let mut read = vec![0; all.len()];
    let ((), done) = tokio::join!(write, reader.read_exact(&mut read));
    done.unwrap();
    assert!(read == all);
}
