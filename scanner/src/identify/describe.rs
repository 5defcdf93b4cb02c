//! From the bytes that a service sends to one line about it. Pure.

use deadlight_shared::text::printable;

/// As much is kept.
const LONGEST: usize = 256;
/// First byte of a TLS alert record.
const TLS_ALERT: u8 = 21;

/// What a service says of itself before it was asked.
pub(crate) fn banner(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    Some(short(line))
}

/// What a service says to an HTTP request.
pub(crate) fn answer(bytes: &[u8]) -> Option<String> {
    if bytes.first() == Some(&TLS_ALERT) && bytes.get(1) == Some(&3) {
        return Some("TLS".to_owned());
    }
    let text = String::from_utf8_lossy(bytes);
    let Some(status) = text.strip_prefix("HTTP/").and_then(|rest| rest.split_whitespace().nth(1)) else {
        return banner(bytes);
    };
    let (head, body) = text.split_once("\r\n\r\n").or_else(|| text.split_once("\n\n")).unwrap_or((&text, ""));
    let server = head.lines().skip(1).find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("server").then(|| value.trim())
    });
    let detail = match (title(body), server) {
        (Some(title), _) => format!(", title {title}"),
        (None, Some(server)) => format!(", server {server}"),
        (None, None) => String::new(),
    };
    Some(short(&format!("HTTP {status}{detail}")))
}

/// What a certificate is for.
pub(crate) fn certificate(names: &[String]) -> String {
    match names.is_empty() {
        true => "TLS, certificate without names".to_owned(),
        false => short(&format!("TLS, certificate for {}", names.join(", "))),
    }
}

/// The text between `<title>` and `</title>`, with single blanks.
fn title(body: &str) -> Option<String> {
    // Only ASCII letters change, so positions stay the same.
    let lower = body.to_ascii_lowercase();
    let tag = lower.find("<title")?;
    let start = tag + lower[tag..].find('>')? + 1;
    let end = start + lower[start..].find("</title").unwrap_or(lower.len() - start);
    let words: Vec<&str> = body[start..end].split_whitespace().collect();
    (!words.is_empty()).then(|| words.join(" "))
}

fn short(text: &str) -> String {
    // Escapes are longer than what they stand for.
    printable(text, LONGEST).chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pages_are_named_by_title_or_server() {
        let page = |head: &str, body: &str| answer(format!("HTTP/1.1 {head}\r\n\r\n{body}").as_bytes()).unwrap();
        assert_eq!(page("200 OK", "<html><head><title>cAdvisor</title>"), "HTTP 200, title cAdvisor");
        assert_eq!(page("200 OK", "<TITLE lang=en>\n  Two\r\n  lines </TITLE>"), "HTTP 200, title Two lines");
        assert_eq!(page("401 No\r\nserver: nginx/1.2", "<title> </title>"), "HTTP 401, server nginx/1.2");
        assert_eq!(page("404 Not Found", ""), "HTTP 404");
        assert_eq!(page("200 OK", "<title>cut sho"), "HTTP 200, title cut sho");
        assert_eq!(answer(b"HTTP/1.0 400 Bad\n\n<title>x</title>").unwrap(), "HTTP 400, title x");
    }

    #[test]
    fn other_answers_are_shown_by_their_first_line() {
        assert_eq!(banner(b"\r\n\r\nSSH-2.0-OpenSSH_9.2p1 Debian\r\nmore").unwrap(), "SSH-2.0-OpenSSH_9.2p1 Debian");
        assert_eq!(answer(b"-ERR unknown command\r\n").unwrap(), "-ERR unknown command");
        assert_eq!(answer(&[21, 3, 1, 0, 2, 2, 40]).unwrap(), "TLS");
        assert_eq!((banner(b""), answer(b""), banner(b" \r\n")), (None, None, None));
        assert_eq!(
            certificate(&["n1.example.net".to_owned(), "*.x".to_owned()]),
            "TLS, certificate for n1.example.net, *.x"
        );
        assert_eq!(certificate(&[]), "TLS, certificate without names");
    }

    #[test]
    fn hostile_text_is_harmless() {
        let shown = banner("\x1b[31mred\u{202e}\0\r\nnext".as_bytes()).unwrap();
        assert!(!shown.contains(['\x1b', '\u{202e}', '\0', '\n']), "{shown:?}");
        let long = answer(&[b"HTTP/1.1 200 OK\r\n\r\n<title>".as_slice(), &vec![b'x'; 1 << 20]].concat()).unwrap();
        assert!(long.chars().count() <= LONGEST, "{}", long.len());
    }

    proptest! {
        #[test]
        fn any_bytes_make_a_short_printable_line(bytes in prop::collection::vec(any::<u8>(), 0..600), http in any::<bool>()) {
            let prefix: &[u8] = if http { b"HTTP/1.1 200 OK\r\n\r\n<title>" } else { b"" };
            for line in [banner(&bytes), answer(&[prefix, &bytes].concat())].into_iter().flatten() {
                prop_assert!(line.chars().count() <= LONGEST);
                prop_assert!(!line.chars().any(char::is_control), "{:?}", line);
            }
        }
    }
}
