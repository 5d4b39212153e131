//! A web service that tells about a text: its length, lines, checksum and encodings.

use std::env;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use base64::prelude::{Engine, BASE64_STANDARD};
use bytes::{BufMut, BytesMut};
use percent_encoding::percent_decode_str;
use smallvec::SmallVec;

const LONGEST_REQUEST: usize = 16 * 1024;

fn main() -> Result<()> {
    let port = env::var("PORT").unwrap_or_else(|_| "8000".into());
    let address = format!("0.0.0.0:{port}");
    let listener =
        TcpListener::bind(&address).with_context(|| format!("listening at {address}"))?;
    eprintln!("listening at {address}");
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            if let Err(fault) = serve(stream) {
                eprintln!("{fault:#}");
            }
        });
    }
    Ok(())
}

/// Answer one request and close the connection.
fn serve(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let target = read_target(&mut stream)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let (status, body) = match path {
        "/" => ("200 OK", "Hello from a Mayfly build, in Rust.\n".into()),
        "/healthz" => ("200 OK", "{\"status\":\"ok\"}\n".into()),
        "/text" => match parameter(query, "is") {
            Some(text) => ("200 OK", describe(&text)),
            None => ("400 Bad Request", "say /text?is=…\n".into()),
        },
        _ => ("404 Not Found", "there is no such page\n".into()),
    };
    let mut answer = BytesMut::with_capacity(body.len() + 128);
    answer.put_slice(b"HTTP/1.1 ");
    answer.put_slice(status.as_bytes());
    answer.put_slice(b"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: ");
    answer.put_slice(itoa::Buffer::new().format(body.len()).as_bytes());
    answer.put_slice(b"\r\nConnection: close\r\n\r\n");
    answer.put_slice(body.as_bytes());
    stream.write_all(&answer)?;
    Ok(())
}

/// The target of a request, read up to the end of its headers.
fn read_target(stream: &mut TcpStream) -> Result<String> {
    let mut received = BytesMut::new();
    let mut part = [0; 2048];
    loop {
        let count = stream.read(&mut part)?;
        if count == 0 || received.len() + count > LONGEST_REQUEST {
            bail!("a request that has no end");
        }
        received.put_slice(&part[..count]);
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        if request
            .parse(&received)
            .context("a request that is not HTTP")?
            .is_complete()
        {
            return Ok(request.path.unwrap_or("/").to_owned());
        }
    }
}

/// A parameter of a query, decoded.
fn parameter(query: &str, name: &str) -> Option<String> {
    let pairs: SmallVec<[(&str, &str); 4]> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .collect();
    let (_, value) = pairs.into_iter().find(|(key, _)| *key == name)?;
    Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
}

/// What there is to say about a text, a line each.
fn describe(text: &str) -> String {
    use std::hash::Hasher;
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
        let told = describe("a\nb");
        assert!(told.contains("bytes: 3\nlines: 2\n") && told.ends_with("base64: YQpi\n"));
    }

    #[test]
    fn a_parameter_is_decoded() {
        assert_eq!(parameter("x=1&is=a%20b", "is").as_deref(), Some("a b"));
        assert_eq!(parameter("x=1", "is"), None);
    }
}
