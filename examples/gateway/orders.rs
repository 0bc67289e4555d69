//! A service that takes orders and knows nothing of retries: `rustc orders.rs && ./orders PORT`.

use std::env;
use std::io::{BufRead, BufReader, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

static ORDERS: AtomicU32 = AtomicU32::new(0);

fn main() -> Result<()> {
    let port = env::args().nth(1).unwrap_or_default().parse().unwrap_or(0);
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    println!("listening on http://{}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || serve(&stream));
    }
    Ok(())
}

fn serve(mut stream: &TcpStream) -> Result<()> {
    let mut requests = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if requests.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim_end().to_ascii_lowercase().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().unwrap_or(0),
                None if line == "\r\n" => break,
                _ => {}
            }
        }
        let mut wish = vec![0; length];
        requests.read_exact(&mut wish)?;
        let wish = String::from_utf8_lossy(&wish);
        let item = wish.split('"').nth(3).unwrap_or_default();
        let number = ORDERS.fetch_add(1, Ordering::Relaxed) + 1;
        let order = format!(r#"{{"order":{number},"item":"{item}"}}"#);
        write!(
            stream,
            "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{order}",
            order.len()
        )?;
    }
}
