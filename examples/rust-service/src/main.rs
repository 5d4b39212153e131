//! A web service that tells about a text: its length, lines, checksum and encoding.

use std::env;
use std::hash::Hasher;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, SystemTime};

use base64::prelude::{Engine, BASE64_STANDARD};
use bytes::{BufMut, BytesMut};
use matchit::Router;
use percent_encoding::percent_decode_str;
use smallvec::SmallVec;

const LONGEST_REQUEST: u64 = 16 * 1024;

#[derive(Clone, Copy)]
enum Page {
    Hello,
    Health,
    Text,
}

fn main() -> io::Result<()> {
    let port = env::var("PORT").unwrap_or_else(|_| "8000".into());
    let listener = TcpListener::bind(format!("0.0.0.0:{port}"))?;
    eprintln!("listening at {}", listener.local_addr()?);
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            if let Err(fault) = serve(stream) {
                eprintln!("serving: {fault}");
            }
        });
    }
    Ok(())
}

/// Answer one request and close the connection.
fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let lines = BufReader::new((&stream).take(LONGEST_REQUEST)).lines();
    let head: SmallVec<[String; 16]> = lines
        .take_while(|line| !line.as_ref().is_ok_and(String::is_empty))
        .collect::<io::Result<_>>()?;
    let target = head.first().and_then(|line| line.split(' ').nth(1));
    let (status, body) = answer(target.unwrap_or("/"));

    let mut answer = BytesMut::with_capacity(body.len() + 160);
    answer.put_slice(b"HTTP/1.1 ");
    answer.put_slice(status.as_bytes());
    answer.put_slice(b"\r\nContent-Type: text/plain; charset=utf-8\r\nDate: ");
    answer.put_slice(httpdate::fmt_http_date(SystemTime::now()).as_bytes());
    answer.put_slice(b"\r\nConnection: close\r\nContent-Length: ");
    answer.put_slice(itoa::Buffer::new().format(body.len()).as_bytes());
    answer.put_slice(b"\r\n\r\n");
    answer.put_slice(body.as_bytes());
    stream.write_all(&answer)
}

/// The status and body for a request's path and query.
fn answer(target: &str) -> (&'static str, String) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut router = Router::new();
    for (route, page) in [
        ("/", Page::Hello),
        ("/healthz", Page::Health),
        ("/text", Page::Text),
    ] {
        router.insert(route, page).expect("routes do not overlap");
    }
    match router.at(path).map(|found| *found.value) {
        Ok(Page::Hello) => ("200 OK", "Hello from a Mayfly build, in Rust.\n".into()),
        Ok(Page::Health) => ("200 OK", "{\"status\":\"ok\"}\n".into()),
        Ok(Page::Text) => match parameter(query, "is") {
            Some(text) => ("200 OK", describe(&text)),
            None => ("400 Bad Request", "say /text?is=…\n".into()),
        },
        Err(_) => ("404 Not Found", "there is no such page\n".into()),
    }
}

/// A parameter of a query, decoded.
fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(key, _)| *key == name)?;
    Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
}

/// What there is to say about a text, a line each.
fn describe(text: &str) -> String {
    let mut hasher = fnv::FnvHasher::default();
    hasher.write(text.as_bytes());
    format!(
        "bytes: {}\nlines: {}\nfnv1a: {}\nbase64: {}\n",
        itoa::Buffer::new().format(text.len()),
        text.split('\n').count(),
        hex::encode(hasher.finish().to_be_bytes()),
        BASE64_STANDARD.encode(text),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_described() {
        let (status, told) = answer("/text?is=a%0Ab");
        assert_eq!(status, "200 OK");
        assert!(told.contains("bytes: 3\nlines: 2\n") && told.ends_with("base64: YQpi\n"));
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        assert_eq!(answer("/text").0, "400 Bad Request");
        assert_eq!(answer("/none").0, "404 Not Found");
    }
}
