//! A chat endpoint on this machine, for one test: each request goes to a closure, and is kept to be looked at.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its number, from 0.
    pub number: usize,
    /// The path.
    pub path: String,
    /// Header names in lower case.
    pub headers: HashMap<String, String>,
    /// What was sent.
    pub body: Value,
}

impl Asked {
    /// What the judge is told.
    pub fn prompt(&self) -> &str {
        self.body["messages"][0]["content"].as_str().unwrap()
    }

    /// What stands below the title `[…]` in the usual prompts.
    pub fn part(&self, title: &str) -> &str {
        let (_, rest) = self.prompt().split_once(&format!("[{title}]\n")).unwrap();
        rest.split("\n\n[").next().unwrap().trim_end()
    }
}

/// What is answered.
pub enum Reply {
    /// A chat completion with this text.
    Says(String),
    /// A status with headers and a body.
    Refuses(u16, &'static str, String),
    /// Nothing for so long, and then the end of the connection.
    Hangs(Duration),
}

/// A server on this machine. It ends with the process.
pub struct Endpoint {
    /// What a recipe's `endpoint` is.
    pub address: String,
    seen: Arc<Mutex<Vec<Asked>>>,
}

impl Endpoint {
    pub fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/v1", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (log, answer) = (seen.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || {
                    if let Some(mut asked) = read(&stream) {
                        let mut log = log.lock().unwrap();
                        asked.number = log.len();
                        log.push(asked.clone());
                        drop(log);
                        // The client may have left; that is its business.
                        let _ = write(stream, answer(&asked));
                    }
                });
            }
        });
        Endpoint { address, seen }
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Asked> {
        self.seen.lock().unwrap().clone()
    }
}

fn read(stream: &TcpStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned())
    };
    let path = line()?.split(' ').nth(1)?.to_owned();
    let mut headers = HashMap::new();
    loop {
        let line = line()?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    Some(Asked {
        number: 0,
        path,
        headers,
        body: serde_json::from_slice(&body).ok()?,
    })
}

fn write(mut stream: TcpStream, reply: Reply) -> std::io::Result<()> {
    let (status, headers, body) = match reply {
        Reply::Says(text) => {
            let tokens = text.split_whitespace().count();
            let body = json!({
                "id": "chat", "object": "chat.completion",
                "choices": [{ "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": text } }],
                "usage": { "prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens },
            });
            (200, "", body.to_string())
        }
        Reply::Refuses(status, headers, body) => (status, headers, body),
        Reply::Hangs(silence) => {
            std::thread::sleep(silence);
            return Ok(());
        }
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} Word\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    );
    stream.write_all((head + &body).as_bytes())
}
