//! A way to an HTTP server on which answers are lost, and requests answered with an error, when a test says so.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is done, and its answer is lost.
    AnswerLost,
    /// It is never heard of, and has no answer.
    RequestLost,
    /// It is done, and its answer is lost once [`Lossy::release`] is called.
    AnswerHeld,
    /// It is done, and answered with 500.
    DoneAnd500,
    /// It is answered as the last request that began with the same line, by a cache, and never done.
    Cached,
    /// It is answered with this status, which names no reason, and never done.
    Status(u16),
    /// It is answered with this status and with itself, its token included, and never done.
    Echo(u16),
}

/// A way that waits for the next request of one kind.
#[derive(Default)]
struct Armed {
    /// How the request begins, such as `PATCH /v1/secret/`.
    begins: String,
    fault: Option<Fault>,
    /// Whether it becomes of each such request, and not of the next one only.
    each: bool,
    fired: usize,
    released: bool,
    /// The last answer to each request, by its first line.
    answers: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A way to a server. It serves as long as the process lives.
pub struct Lossy {
    port: u16,
    armed: Arc<Mutex<Armed>>,
}

impl Lossy {
    /// Opens a way to `127.0.0.1:port`.
    ///
    /// # Panics
    /// Where no port is free.
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let own = listener.local_addr().expect("it listens").port();
        let armed = Arc::new(Mutex::new(Armed::default()));
        let shared = Arc::clone(&armed);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // A client that breaks off is no concern of anybody's.
                std::thread::spawn(move || drop(pass_on(client, port, &shared)));
            }
        });
        Self { port: own, armed }
    }

    /// Returns its address.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Makes this become of the next request that begins so.
    ///
    /// # Panics
    /// Where a connection has panicked.
    pub fn next(&self, begins: &str, fault: Fault) {
        self.arm(begins, fault, false);
    }

    /// Makes this become of each request that begins so.
    pub fn each(&self, begins: &str, fault: Fault) {
        self.arm(begins, fault, true);
    }

    fn arm(&self, begins: &str, fault: Fault, each: bool) {
        let mut armed = self.armed.lock().expect("nobody panicked");
        armed.begins = begins.to_owned();
        armed.fault = Some(fault);
        armed.each = each;
        armed.released = false;
    }

    /// Lets an answer be lost that is [held](Fault::AnswerHeld).
    ///
    /// # Panics
    /// Where a connection has panicked.
    pub fn release(&self) {
        self.armed.lock().expect("nobody panicked").released = true;
    }

    /// Returns how many requests met a fault.
    ///
    /// # Panics
    /// Where a connection has panicked.
    pub fn fired(&self) -> usize {
        self.armed.lock().expect("nobody panicked").fired
    }
}

/// Passes one request on, and its answer back.
fn pass_on(mut client: TcpStream, port: u16, armed: &Mutex<Armed>) -> std::io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(30)))?;
    let request = request(&mut client)?;
    let fault = {
        let mut armed = armed.lock().map_err(|_| std::io::ErrorKind::Other)?;
        let meant = request.starts_with(armed.begins.as_bytes());
        let fault = armed.fault.filter(|_| meant);
        if meant && !armed.each {
            armed.fault = None;
        }
        armed.fired += usize::from(fault.is_some());
        fault
    };
    let saying = |status: u16, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    };
    let plain = |status: u16| saying(status, b"{}");
    match fault {
        Some(Fault::RequestLost) => client.shutdown(Shutdown::Both),
        Some(Fault::Status(status)) => client.write_all(&plain(status)),
        Some(Fault::Echo(status)) => client.write_all(&saying(status, &request)),
        Some(Fault::AnswerLost) => {
            answer(&request, port)?;
            client.shutdown(Shutdown::Both)
        }
        Some(Fault::DoneAnd500) => {
            answer(&request, port)?;
            client.write_all(&plain(500))
        }
        Some(Fault::AnswerHeld) => {
            answer(&request, port)?;
            let is_released = || armed.lock().expect("nobody panicked").released;
            for _ in 0..6_000 {
                if is_released() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            client.shutdown(Shutdown::Both)
        }
        Some(Fault::Cached) => {
            let known =
                armed.lock().expect("nobody panicked").answers.get(first(&request)).cloned();
            client.write_all(&known.unwrap_or_else(|| plain(404)))
        }
        None => {
            let answer = answer(&request, port)?;
            let mut armed = armed.lock().expect("nobody panicked");
            armed.answers.insert(first(&request).to_vec(), answer.clone());
            drop(armed);
            client.write_all(&answer)
        }
    }
}

fn first(request: &[u8]) -> &[u8] {
    request.split(|byte| *byte == b'\r').next().unwrap_or_default()
}

/// Reads a whole request, and makes it the last one of its connection.
fn request(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        more(client, &mut bytes)?;
    };
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.and_then(|length| length.trim().parse().ok()).unwrap_or(0);
    while bytes.len() < head + length {
        more(client, &mut bytes)?;
    }
    let line = bytes.windows(2).position(|window| window == b"\r\n").unwrap_or(0) + 2;
    let (first, rest) = bytes.split_at(line);
    Ok([first, b"connection: close\r\n", rest].concat())
}

fn more(client: &mut TcpStream, bytes: &mut Vec<u8>) -> std::io::Result<()> {
    let mut buffer = [0; 8192];
    match client.read(&mut buffer)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        read => {
            bytes.extend_from_slice(&buffer[..read]);
            Ok(())
        }
    }
}

fn answer(request: &[u8], port: u16) -> std::io::Result<Vec<u8>> {
    let mut server = TcpStream::connect(("127.0.0.1", port))?;
    server.set_read_timeout(Some(Duration::from_secs(60)))?;
    server.write_all(request)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    Ok(answer)
}
