//! Tables (CSV and TSV), and the rows that `where` takes.

use std::io::Write;

use levain_data::{Format, Prompt, ReadOptions, ReadReport, Row, peek, read_files};

fn read(
    name: &str,
    content: &[u8],
    options: &ReadOptions,
) -> anyhow::Result<(ReadReport, Vec<Row>)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    let mut rows = Vec::new();
    let mut sink = |row| {
        rows.push(row);
        Ok(())
    };
    let files = [(name.to_owned(), path)];
    let report = read_files(&files, options, &mut sink, &mut |_| {})?;
    assert_eq!(peek(&files, options, &mut |_| ())?.format, report.format);
    Ok((report, rows))
}

fn table(content: &str, format: Format) -> anyhow::Result<(ReadReport, Vec<Row>)> {
    let options = ReadOptions {
        format,
        ..ReadOptions::default()
    };
    read("rows.csv", content.as_bytes(), &options)
}

fn labelled(text: &str, label: &str) -> Row {
    Row::Labelled {
        text: text.into(),
        label: label.into(),
    }
}

#[test]
fn fields_may_be_in_quotes_and_hold_line_ends() {
    let content =
        "text,label,source\r\n\"a, \"\"b\"\"\r\nc\",1,x\r\n\r\nplain é,0,\"\"\r\n\"\",2,y";
    let (report, rows) = table(content, Format::Labelled).unwrap();
    assert_eq!(
        rows,
        [
            labelled("a, \"b\"\r\nc", "1"),
            labelled("plain é", "0"),
            labelled("", "2")
        ]
    );
    assert_eq!(
        report.ignored.into_iter().collect::<Vec<_>>(),
        [("source".to_owned(), 3)]
    );
    let (_, rows) = read(
        "rows.tsv",
        b"\ntext\tlabel\na,b\t\"c\td\"\n",
        &ReadOptions {
            format: Format::Labelled,
            ..ReadOptions::default()
        },
    )
    .unwrap();
    assert_eq!(rows, [labelled("a,b", "c\td")]);
}

#[test]
fn numbers_and_booleans_are_read_from_their_texts() {
    let (report, rows) = table(
        "prompt,completion,label\np,c,True\n,d,false\n",
        Format::Auto,
    )
    .unwrap();
    assert_eq!(report.format, Format::Unpaired);
    let row = |prompt: &str, completion: &str, desirable| Row::Unpaired {
        prompt: Prompt::Text(prompt.into()),
        completion: completion.into(),
        desirable,
    };
    assert_eq!(rows, [row("p", "c", true), row("", "d", false)]);
    let (_, rows) = table(
        "prompt,chosen,rejected,margin\np,a,b, 1.5\np,a,b,\n",
        Format::Auto,
    )
    .unwrap();
    let margins: Vec<_> = rows
        .iter()
        .map(|row| match row {
            Row::Preference { margin, .. } => *margin,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(margins, [Some(1.5), None]);
}

#[test]
fn compressed_tables_with_a_byte_order_mark_and_columns_without_a_name_are_read() {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all("\u{feff},text\n0,a\n1,b\n".as_bytes())
        .unwrap();
    let (report, rows) = read(
        "rows.csv.gz",
        &gz.finish().unwrap(),
        &ReadOptions::default(),
    )
    .unwrap();
    assert!(report.byte_order_mark);
    assert_eq!(rows.len(), 2);
    assert_eq!(report.ignored.keys().collect::<Vec<_>>(), ["column 1"]);
}

#[test]
fn long_tables_are_streamed() {
    let mut content = "text\n".to_owned();
    let text = |i: usize| "é\"\n,".repeat(i % 97 * if i == 96 { 400 } else { 1 });
    for i in 0..3000 {
        content += &format!("\"{i} {}\"\n", text(i).replace('"', "\"\""));
    }
    let (report, rows) = table(&content, Format::Auto).unwrap();
    assert_eq!(report.rows, 3000);
    for (i, row) in rows.iter().enumerate() {
        let text = format!("{i} {}", text(i));
        assert_eq!(*row, Row::Text { text });
    }
}

#[test]
fn broken_tables_say_where_and_what() {
    let error = |content: &[u8]| {
        let options = ReadOptions {
            format: Format::Labelled,
            ..ReadOptions::default()
        };
        read("rows.csv", content, &options).unwrap_err().to_string()
    };
    let cases: [(&[u8], &str); 10] = [
        (b"", "rows.csv: no rows"),
        (b"text,label\n", "rows.csv: no rows"),
        (
            b"text,text\na,b\n",
            "rows.csv:1:6: the column `text` is there twice in the first line (row: text,text)",
        ),
        (
            b"text,label\na,b\n\xc3\xa9,b,c\n",
            "rows.csv:3:5: this row has 3 fields, and the first line names 2 columns (text, label)",
        ),
        (
            b"text,label\n\"a\nb\",1\nx\n",
            "rows.csv:4:2: this row has 1 field, and",
        ),
        (
            b"text,label\na,\n",
            "rows.csv:2:3: the field `label` is empty",
        ),
        (
            b"text,label\na,b\nx,\"b\n",
            "rows.csv:3:3: a quote is opened here and not closed before the end of the file",
        ),
        (
            b"text,label\n\"a \"b\" c\",1\n",
            "rows.csv:2:5: a field in quotes goes on behind its closing quote",
        ),
        (
            b"text,label\na,b\nx\xff,b\n",
            "rows.csv:3:2: invalid UTF-8: byte 0xff at offset 16 of the file",
        ),
        (
            b"\xff\xfet\0",
            "rows.csv:1:1: the byte order mark says UTF-16",
        ),
    ];
    for (content, expected) in cases {
        let error = error(content);
        assert!(
            error.contains(expected),
            "{error}\n  should say: {expected}"
        );
    }
    let error = table("a,label\nx,1\n", Format::Labelled)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("rows.csv:2:1: the field `text` is missing, there are: a, label"),
        "{error}"
    );
}

#[test]
fn no_bytes_make_the_reader_panic() {
    let whole = b"text,label\n\"a, \"\"b\"\"\nc\",1\r\nplain,0\n";
    for at in 0..whole.len() {
        for byte in [0, b'"', b',', b'\n', b'\r', 0xff] {
            let mut content = whole.to_vec();
            content[at] = byte;
            let _ = read("rows.csv", &content, &ReadOptions::default());
            let _ = read("rows.csv", &content[..at], &ReadOptions::default());
        }
    }
}

fn only(column: &str, values: &[&str]) -> ReadOptions {
    ReadOptions {
        format: Format::Text,
        filter: [(
            column.to_owned(),
            values.iter().map(|v| (*v).to_owned()).collect(),
        )]
        .into(),
        ..ReadOptions::default()
    }
}

const REVIEWS: &str = "\
text,label,source
a,1,imdb
b,0,rotten
c,1,rotten
d,0,imdb
";

fn texts(rows: &[Row]) -> String {
    let text = |row: &Row| row.question().0.question().to_owned();
    rows.iter().map(text).collect()
}

#[test]
fn where_takes_the_rows_with_these_values() {
    let (report, rows) = read("rows.csv", REVIEWS.as_bytes(), &only("source", &["imdb"])).unwrap();
    assert_eq!(
        (texts(&rows), report.left_out, report.rows),
        ("ad".to_owned(), 2, 2)
    );
    assert_eq!(report.ignored.keys().collect::<Vec<_>>(), ["label"]);
    let (report, rows) = read(
        "rows.csv",
        REVIEWS.as_bytes(),
        &only("source", &["imdb", "rotten"]),
    )
    .unwrap();
    assert_eq!((texts(&rows), report.left_out), ("abcd".to_owned(), 0));
    // Both, the limit counts what is kept, and names are the file's own.
    let mut options = only("source", &["rotten"]);
    options.filter.insert("label".into(), vec!["1".into()]);
    options.columns.insert("text".into(), "source".into());
    let (_, rows) = read("rows.csv", REVIEWS.as_bytes(), &options).unwrap();
    assert_eq!(texts(&rows), "rotten");
    let limited = ReadOptions {
        limit: Some(1),
        ..only("source", &["rotten"])
    };
    let (report, rows) = read("rows.csv", REVIEWS.as_bytes(), &limited).unwrap();
    assert_eq!((texts(&rows), report.left_out), ("b".to_owned(), 1));
    // Numbers and booleans are compared as the file writes them.
    let lines = b"{\"text\": \"a\", \"n\": 1}\n{\"text\": \"b\", \"n\": 1.0}\n{\"text\": \"c\", \"n\": true}\n{\"text\": \"d\"}\n";
    for (value, expected) in [("1", "a"), ("1.0", "b"), ("true", "c")] {
        let (report, rows) = read("rows.jsonl", lines, &only("n", &[value])).unwrap();
        assert_eq!((texts(&rows).as_str(), report.left_out), (expected, 3));
    }
}

#[test]
fn where_nothing_is_left_the_error_says_why() {
    let error = |options: &ReadOptions| {
        read("rows.csv", REVIEWS.as_bytes(), options)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error(&only("sources", &["imdb"])),
        "rows.csv: where: no row has a column `sources`, is `source` meant? (there are: label, source, text)"
    );
    assert_eq!(
        error(&only("source", &["IMDb", "x"])),
        "rows.csv: where: none of 4 rows has `source` `IMDb`, `x` (found among others: `imdb`, `rotten`)"
    );
    assert_eq!(
        error(&only("source", &[])),
        "where: `source` has no values, so no row would be read"
    );
}
