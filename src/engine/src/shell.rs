//! Words as a shell takes them, for the commands that messages name.

use std::borrow::Cow;

/// The word, between quotes where a shell would read it otherwise.
pub fn quoted(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_alphanumeric() || "_-./,:+@%=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return Cow::Borrowed(word);
    }
    Cow::Owned(format!("'{}'", word.replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn what_a_shell_would_read_otherwise_is_quoted() {
        for plain in [
            "recipes/tour.yaml",
            "../a_b-1.yml",
            "params.lr=1e-4",
            "Größe",
        ] {
            assert_eq!(quoted(plain), plain);
        }
        for (word, wanted) in [
            ("", "''"),
            ("two words.yaml", "'two words.yaml'"),
            ("align[2].asked", "'align[2].asked'"),
            ("$HOME;ls", "'$HOME;ls'"),
            ("it's", r"'it'\''s'"),
        ] {
            assert_eq!(quoted(word), wanted);
        }
    }
}
