//! References taken apart: `align[2].tuned.metrics`.

/// One part of a path: `align[2]`.
pub(super) struct Part<'a> {
    pub name: &'a str,
    /// What stands in brackets.
    pub selector: Option<&'a str>,
}

/// Takes a path apart at the dots outside of brackets.
pub(super) fn parts(text: &str) -> Option<Vec<Part<'_>>> {
    let (mut found, mut start, mut inside) = (Vec::new(), 0, false);
    let ends = text.char_indices().chain([(text.len(), '.')]);
    for (at, letter) in ends {
        match letter {
            '[' if inside => return None,
            '[' => inside = true,
            ']' => inside = false,
            '.' if !inside => {
                found.push(part(&text[start..at])?);
                start = at + 1;
            }
            _ => {}
        }
    }
    (!inside).then_some(found)
}

fn part(text: &str) -> Option<Part<'_>> {
    let Some((name, rest)) = text.split_once('[') else {
        return (!text.is_empty() && !text.contains(']')).then_some(Part {
            name: text,
            selector: None,
        });
    };
    let selector = rest.strip_suffix(']')?;
    (!name.is_empty() && !selector.is_empty() && !selector.contains(']')).then_some(Part {
        name,
        selector: Some(selector.trim()),
    })
}
