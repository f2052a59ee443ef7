use std::fmt;

use reqwest::header::HeaderValue;

use crate::ClientError;

/// What proves to a daemon that its user may use it. It is never printed.
#[derive(Clone)]
pub struct Token(HeaderValue);

impl Token {
    /// Takes the text of a token; white space around it does not matter.
    pub fn new(text: &str) -> Result<Self, ClientError> {
        let text = text.trim();
        let mut header =
            HeaderValue::from_str(&format!("Bearer {text}")).map_err(|_| ClientError::NoToken)?;
        if text.is_empty() || !text.bytes().all(|c| c.is_ascii_graphic()) {
            return Err(ClientError::NoToken);
        }
        header.set_sensitive(true);
        Ok(Self(header))
    }

    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_word_and_is_not_printed() {
        let token = Token::new(" change-me\n").expect("as it is read from a file");
        assert_eq!(token.header(), "Bearer change-me");
        assert!(!format!("{token:?} {:?}", token.header()).contains("change-me"));
        for text in ["", "\n", "two words", "a\nb", "ä"] {
            Token::new(text).expect_err(text);
        }
    }
}
