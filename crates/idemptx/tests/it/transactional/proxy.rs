//! A way to a server that breaks at the worst of moments.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Leads to a server on this host.
pub(crate) struct Proxy {
    port: u16,
    cut: Arc<AtomicU8>,
}

/// Where the next connection that commits is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cut {
    /// The commit does not get through.
    BeforeCommit = 1,
    /// It does, and its answer does not.
    BeforeAnswer = 2,
}

impl Proxy {
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let cut = Arc::new(AtomicU8::new(0));
        let armed = cut.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // A server that is down refuses whoever comes.
                if let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await {
                    tokio::spawn(carry(client, server, armed.clone()));
                }
            }
        });
        Self { port, cut }
    }

    /// A URL of the server, by this way.
    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Cuts one connection.
    pub(crate) fn arm(&self, cut: Cut) {
        self.cut.store(cut as u8, Ordering::SeqCst);
    }

    /// Whether that has happened.
    pub(crate) fn is_armed(&self) -> bool {
        self.cut.load(Ordering::SeqCst) != 0
    }
}

/// Carries bytes both ways until it is time to cut.
async fn carry(mut client: TcpStream, mut server: TcpStream, armed: Arc<AtomicU8>) {
    let (mut asked, mut answered) = (vec![0; BYTES], vec![0; BYTES]);
    let mut is_committing = false;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(bytes @ 1..) = read else { return };
                let commits = asked[..bytes].windows(COMMIT.len()).any(|it| it == COMMIT);
                if commits {
                    match armed.swap(0, Ordering::SeqCst) {
                        1 => return,
                        2 => is_committing = true,
                        _ => {}
                    }
                }
                if server.write_all(&asked[..bytes]).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(bytes @ 1..) = read else { return };
                // It has been committed.
                if is_committing {
                    return;
                }
                if client.write_all(&answered[..bytes]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// As the simple protocol has it.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";
const BYTES: usize = 64 << 10;
