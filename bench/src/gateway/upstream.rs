//! A service that costs as little as one can: it answers every request with the same bytes.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::server::Server;
use crate::{Measured, app, load, machine};

/// The service in a separate process, on the core of the clients.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    _server: Server,
}

/// The flags of that process.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Flags {
    /// Run on any core, not on that of the clients.
    #[arg(long)]
    any_core: bool,
}

impl Upstream {
    pub(crate) fn start() -> Measured<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("upstream");
        if machine::are_shared() {
            command.arg("--any-core");
        }
        let server = Server::launch(command)?;
        Ok(Self { address: server.address, _server: server })
    }
}

/// Serves until killed.
pub(crate) fn run(flags: &Flags) -> Measured<()> {
    if !flags.any_core {
        machine::stay_on(machine::MEASURING);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        println!("{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(serve(stream));
        }
    })
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = format!(
        "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
        app::ORDER.len(),
        app::ORDER
    );
    let mut request = Vec::new();
    loop {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
        if load::is_whole(&request) {
            request.clear();
            stream.write_all(answer.as_bytes()).await?;
        }
    }
}
