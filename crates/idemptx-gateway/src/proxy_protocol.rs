//! The PROXY protocol, version 2: a load balancer says for whom it connects.
//!
//! Only the binary version is read. A listener that wants it takes no connection without it, as the
//! specification demands (§5): what may be there or not could be sent by a client.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

/// Reads the header, and returns the client's address; `None` if the balancer speaks for itself, as
/// for a health check.
pub(crate) async fn read_header<S>(stream: &mut S, limit: Duration) -> io::Result<Option<IpAddr>>
where
    S: AsyncRead + Unpin,
{
    timeout(limit, header(stream)).await?
}

async fn header<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<IpAddr>> {
    let mut fixed = [0; FIXED_BYTES];
    stream.read_exact(&mut fixed).await?;
    let [signature @ .., command, family, length_high, length_low] = fixed;
    if signature != SIGNATURE {
        return Err(invalid("no header of the PROXY protocol, version 2"));
    }
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    if length > BODY_BYTES_MAX {
        return Err(invalid("the header of the PROXY protocol is too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    match (command, family) {
        (LOCAL, _) => Ok(None),
        (PROXY, TCP_OVER_IPV4) => address::<4>(&body).map(|it| Some(IpAddr::from(it))),
        (PROXY, TCP_OVER_IPV6) => address::<16>(&body).map(|it| Some(IpAddr::from(it))),
        // Of a kind that has no address of use here: the receiver must accept it (§2.2).
        (PROXY, _) => Ok(None),
        _ => Err(invalid("an unknown command of the PROXY protocol")),
    }
}

/// The source, which comes first; ports and extensions follow.
fn address<const BYTES: usize>(body: &[u8]) -> io::Result<[u8; BYTES]> {
    // Both addresses, and both ports.
    let complete = body.get(..2 * BYTES + 4).and_then(<[u8]>::first_chunk);
    complete.copied().ok_or_else(|| invalid("the header of the PROXY protocol is cut short"))
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const FIXED_BYTES: usize = SIGNATURE.len() + 4;
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// Addresses, and extensions such as the name of a certificate.
const BODY_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> Result<Option<IpAddr>, String> {
        let mut stream = bytes;
        let read = read_header(&mut stream, Duration::from_secs(5)).await;
        read.map_err(|error| error.to_string())
    }

    fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, body].concat()
    }

    #[tokio::test]
    async fn a_header_names_the_client() {
        let ipv4 = [10, 0, 0, 7, 10, 0, 0, 1, 1, 2, 3, 4, 0x20, 0, 1, 9];
        assert_eq!(
            read(&header(PROXY, TCP_OVER_IPV4, &ipv4)).await,
            Ok(Some([10, 0, 0, 7].into()))
        );
        let mut ipv6 = [0; 36];
        ipv6[15] = 1;
        assert_eq!(
            read(&header(PROXY, TCP_OVER_IPV6, &ipv6)).await,
            Ok(Some("::1".parse().unwrap()))
        );
        assert_eq!(read(&header(LOCAL, 0, &[])).await, Ok(None));
        assert_eq!(read(&header(PROXY, 0x31, &[0; 216])).await, Ok(None), "a unix socket");
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        for bytes in [
            header(PROXY, TCP_OVER_IPV4, &[0; 11]),
            header(PROXY, TCP_OVER_IPV6, &[0; 12]),
            header(0x22, TCP_OVER_IPV4, &[0; 12]),
            header(PROXY, TCP_OVER_IPV4, &[0; BODY_BYTES_MAX + 1]),
            b"PROXY TCP4 10.0.0.7 10.0.0.1 1 2\r\n".to_vec(),
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            SIGNATURE.to_vec(),
        ] {
            assert!(read(&bytes).await.is_err(), "{bytes:?}");
        }
    }
}
