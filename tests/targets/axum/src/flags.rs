//! The flags that every target takes.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use clap::Parser;

/// The target application of the black-box suite.
#[derive(Debug, Parser)]
pub struct Flags {
    /// The address to accept connections on; port 0 is a free one.
    #[arg(long, default_value = "127.0.0.1:8080", value_parser = address)]
    pub listen: SocketAddr,
    /// The store's URL.
    #[arg(long, default_value = "memory:")]
    pub store: String,
    /// The policy to start from.
    #[arg(long, default_value = "draft", value_parser = ["draft", "stripe", "payments", "idemptx", "acp", "ucp", "iceberg"])]
    pub profile: String,
    /// A JSON object laid over the profile.
    #[arg(long, default_value = "{}")]
    pub policy: String,
    /// A file to append one line to for the start and the end of every execution.
    #[arg(long)]
    pub journal: Option<PathBuf>,
    /// Leave the layer out.
    #[arg(long)]
    pub unprotected: bool,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut addresses = text.to_socket_addrs().map_err(|error| error.to_string())?;
    addresses.next().ok_or_else(|| "it names no address".to_owned())
}
