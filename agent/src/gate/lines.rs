//! A stream of lines in pieces of any size, given on line by line.

use hyper::body::Bytes;

/// Events that Docker sends are a few hundred bytes.
const MAX_LINE: usize = 64 << 10;

/// What has come of the line that is not at its end yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    begun: Vec<u8>,
}

/// A line that does not end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {} KiB", MAX_LINE >> 10)]
pub(super) struct TooLong;

impl Lines {
    /// Takes what comes next; returns the lines that are whole now, each with its end.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<Bytes, TooLong> {
        self.begun.extend_from_slice(piece);
        if self.begun.split(|byte| *byte == b'\n').any(|line| line.len() > MAX_LINE) {
            return Err(TooLong);
        }
        let whole = self.begun.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        Ok(self.begun.drain(..whole).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_pass_whole_and_in_order_however_they_are_cut() {
        let text = b"{\"a\":1}\n\n{\"b\":2}\n{\"c\"";
        for size in 1..=text.len() {
            let mut lines = Lines::default();
            let passed: Vec<Bytes> = text.chunks(size).map(|piece| lines.push(piece).unwrap()).collect();
            assert!(passed.iter().all(|piece| piece.is_empty() || piece.ends_with(b"\n")));
            assert_eq!(passed.concat(), b"{\"a\":1}\n\n{\"b\":2}\n", "in pieces of {size}");
            assert_eq!(lines.begun, b"{\"c\"");
        }
    }

    #[test]
    fn no_more_is_held_than_one_line() {
        let mut lines = Lines::default();
        let pieces = (0..).take_while(|_| lines.push(&[b'x'; 1000]).is_ok()).count();
        assert_eq!(pieces, MAX_LINE / 1000);
        assert_eq!(Lines::default().push(&[b'x'; MAX_LINE + 1]), Err(TooLong));
        let mut lines = vec![b'x'; MAX_LINE];
        lines.push(b'\n');
        assert_eq!(Lines::default().push(&lines).unwrap().len(), MAX_LINE + 1);
    }
}
