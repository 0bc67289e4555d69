//! Networks of addresses, and what connects without one.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use super::listen_address::UNIX;
use crate::network::ClientAddress;

/// An address, all that begin with the same bits (`10.0.0.0/8`, `2001:db8::/32`), or all that
/// connects over a Unix socket (`unix:`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Range { address: IpAddr, bits: u32 },
    UnixSockets,
}

impl Network {
    /// Returns whether an address is in the network; one of IPv4 that is mapped into IPv6 counts as
    /// what it is.
    pub(crate) fn contains(&self, address: impl Into<ClientAddress>) -> bool {
        let (own, bits, address) = match (self.0, address.into()) {
            (Kind::UnixSockets, ClientAddress::UnixSocket) => return true,
            (Kind::Range { address: own, bits }, ClientAddress::Ip(address)) => {
                (own, bits, address)
            }
            _ => return false,
        };
        let shared = |of: u128, other: u128, width: u32| {
            let differing = of ^ other;
            differing.checked_shr(width.saturating_sub(bits)).unwrap_or(0) == 0
        };
        match (own, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(it)) => {
                shared(u32::from(own).into(), u32::from(it).into(), u32::BITS)
            }
            (IpAddr::V6(own), IpAddr::V6(it)) => shared(own.into(), it.into(), u128::BITS),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let advice = "write an address or a network, as `10.0.0.0/8`, or `unix:`";
        if text == UNIX {
            return Ok(Self(Kind::UnixSockets));
        }
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| advice)?;
        let width = if address.is_ipv4() { u32::BITS } else { u128::BITS };
        let bits = match bits {
            None => width,
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= width).ok_or(advice)?,
        };
        Ok(Self(Kind::Range { address, bits }))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Kind::Range { address, bits } => write!(f, "{address}/{bits}"),
            Kind::UnixSockets => f.write_str(UNIX),
        }
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_the_addresses_that_begin_as_it_does() {
        for (network, address, is_inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::/0", "fe80::1", true),
        ] {
            let network: Network = network.parse().unwrap();
            assert_eq!(
                network.contains(address.parse::<IpAddr>().unwrap()),
                is_inside,
                "{network} {address}"
            );
        }
        let sockets: Network = "unix:".parse().unwrap();
        assert!(sockets.contains(ClientAddress::UnixSocket));
        assert!(!sockets.contains(IpAddr::from([127, 0, 0, 1])));
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(!all.contains(ClientAddress::UnixSocket));
        for text in ["10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/", "here", "unix:/a"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
