//! Reads an object of plain strings at a glance. Whatever else it meets (an escape, another kind of value, a mistake)
//! it leaves to a reader that knows all of JSON.

/// Calls `member` with the name and the quoted value of every member of an object; returns whether the whole text is
/// one object of plain strings. Where it is not, what was said of its members means nothing.
pub(super) fn members<'a>(text: &'a str, mut member: impl FnMut(&'a str, &'a str)) -> bool {
    let mut scan = Scan { text, at: 0 };
    scan.object(&mut member).is_some() && scan.at == text.len()
}

struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    fn object(&mut self, member: &mut impl FnMut(&'a str, &'a str)) -> Option<()> {
        self.skip_space();
        self.take(b'{')?;
        self.skip_space();
        if self.peek() != Some(b'}') {
            loop {
                let name = self.string()?;
                self.skip_space();
                self.take(b':')?;
                self.skip_space();
                let value = self.string()?;
                self.skip_space();
                member(name.get(1..name.len() - 1)?, value);
                if self.peek() != Some(b',') {
                    break;
                }
                self.at += 1;
                self.skip_space();
            }
        }
        self.take(b'}')?;
        self.skip_space();
        Some(())
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        let is_there = self.peek() == Some(byte);
        self.at += usize::from(is_there);
        is_there.then_some(())
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// A string without an escape, in its quotes.
    fn string(&mut self) -> Option<&'a str> {
        let begin = self.at;
        self.take(b'"')?;
        self.at += plain_len(self.text.as_bytes().get(self.at..)?);
        self.take(b'"')?;
        self.text.get(begin..self.at)
    }
}

/// How many bytes stand before the first quote, backslash or control character.
fn plain_len(bytes: &[u8]) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut len = 0;
    for word in words {
        let special = special_bytes(u64::from_le_bytes(*word));
        if special != 0 {
            return len + special.trailing_zeros() as usize / 8;
        }
        len += 8;
    }
    let is_special = |&byte: &u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    len + rest.iter().position(is_special).unwrap_or(rest.len())
}

/// The high bit of the lowest byte that ends a plain string, and maybe of higher ones; 0 when none does.
///
/// "Determine if a word has a byte less than n", Sean Eron Anderson, Bit Twiddling Hacks.
const fn special_bytes(word: u64) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGHS: u64 = ONES << 7;
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let quotes = quote.wrapping_sub(ONES) & !quote;
    let backslashes = backslash.wrapping_sub(ONES) & !backslash;
    let controls = word.wrapping_sub(ONES * 0x20) & !word;
    (quotes | backslashes | controls) & HIGHS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_plain_string_ends_at_its_first_special_byte(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0x1e_u8..0x24, Just(b'\\')], 0..40),
        ) {
            let is_special = |&byte: &u8| byte < 0x20 || byte == b'"' || byte == b'\\';
            let expected = bytes.iter().position(is_special).unwrap_or(bytes.len());
            prop_assert_eq!(plain_len(&bytes), expected);
        }
    }
}
