//! Texts with places to fill in: what a recipe says to a model about a prompt or an answer.

/// Puts values into the places `{name}` of a template, in one pass: what a value says is never taken for a place. Braces around other
/// words stay as they are. A place whose value is empty goes together with the blank line after it.
pub fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        filled.push_str(&rest[..at]);
        rest = &rest[at..];
        let found = values
            .iter()
            .find_map(|(name, value)| Some((value, after_place(rest, name)?)));
        match found {
            Some((value, after)) => {
                filled.push_str(value);
                rest = match value.is_empty() {
                    true => after.strip_prefix("\n\n").unwrap_or(after),
                    false => after,
                };
            }
            None => {
                filled.push('{');
                rest = &rest[1..];
            }
        }
    }
    filled + rest
}

/// What follows `{name}` where `text` begins with it.
fn after_place<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.strip_prefix('{')?
        .strip_prefix(name)?
        .strip_prefix('}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_no_template() {
        let values = [("prompt", "say {answer}"), ("answer", "yes")];
        assert_eq!(
            fill("{prompt} → {answer}, {other} {", &values),
            "say {answer} → yes, {other} {"
        );
        assert_eq!(fill("{{prompt}}", &values), "{say {answer}}");
        assert_eq!(fill("", &values), "");
    }

    #[test]
    fn an_empty_place_goes_with_its_blank_line() {
        let template = "{criteria}\n\n{examples}\n\n{prompt}";
        let with = |criteria, examples| {
            let values = [
                ("criteria", criteria),
                ("examples", examples),
                ("prompt", "p"),
            ];
            fill(template, &values)
        };
        assert_eq!(with("", ""), "p");
        assert_eq!(with("c", ""), "c\n\np");
        assert_eq!(with("", "e"), "e\n\np");
        assert_eq!(with("c", "e"), "c\n\ne\n\np");
    }
}
