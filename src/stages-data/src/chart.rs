//! The chart of `overoptimization` as SVG: distance and gain, points with their standard errors, fitted curves, peaks. Readable on light and
//! dark ground.

use std::fmt::Write;

use data::overoptimization::{Fit, Point};

use crate::overoptimization::Curve;

const WIDTH: f64 = 760.0;
const PLOT: f64 = 380.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 24.0;
/// Between lines of the legend.
const LINE: f64 = 22.0;
/// Of a letter, roughly.
const LETTER: f64 = 7.2;

/// Gold and proxy of a lone curve.
const PAIR: [&str; 2] = ["#c58a00", "#4a7ddc"];
/// One for each of several curves.
const COLOURS: [&str; 8] = [
    "#4a7ddc", "#d1495b", "#2f9e6e", "#c58a00", "#9a6dd7", "#1793a5", "#c2649a", "#8a8f98",
];

const STYLE: &str = "\
.levain-chart { font: 13px system-ui, sans-serif }
.levain-chart .ground, .levain-chart .hollow { fill: #ffffff }
.levain-chart text { fill: #1f2328 }
.levain-chart .axis { stroke: #59636e }
.levain-chart .grid { stroke: #e3e8ed }
@media (prefers-color-scheme: dark) {
  .levain-chart .ground, .levain-chart .hollow { fill: #0d1117 }
  .levain-chart text { fill: #e6edf3 }
  .levain-chart .axis { stroke: #9198a1 }
  .levain-chart .grid { stroke: #262d36 }
}
";

/// Which judge's numbers a line shows.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Proxy,
    Gold,
}

impl Side {
    fn score(self, point: &Point) -> f64 {
        match self {
            Side::Proxy => point.proxy,
            Side::Gold => point.gold,
        }
    }

    fn error(self, point: &Point) -> f64 {
        let error = match self {
            Side::Proxy => point.proxy_error,
            Side::Gold => point.gold_error,
        };
        error.unwrap_or(0.0)
    }

    fn fit(self, curve: &Curve) -> Option<&Fit> {
        match self {
            Side::Proxy => curve.proxy.as_ref(),
            Side::Gold => curve.gold.as_ref(),
        }
    }

    /// How its lines are broken.
    fn dashes(self) -> &'static str {
        match self {
            Side::Proxy => " stroke-dasharray=\"6 4\"",
            Side::Gold => "",
        }
    }
}

/// An axis from `low` to `high` with a mark every `step`.
struct Scale {
    low: f64,
    high: f64,
    step: f64,
}

impl Scale {
    /// Marks at 1, 2 or 5 times a power of ten, about six of them.
    fn over(low: f64, high: f64) -> Scale {
        let (low, high) = match high > low {
            true => (low, high),
            false => (low - 0.5, high + 0.5),
        };
        let rough = (high - low) / 6.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|times| times * power)
            .find(|step| *step >= rough * 0.999)
            .unwrap_or(10.0 * power);
        Scale {
            low: (low / step).floor() * step,
            high: (high / step).ceil() * step,
            step,
        }
    }

    fn marks(&self) -> impl Iterator<Item = f64> {
        let (low, step) = (self.low, self.step);
        let count = ((self.high - low) / step).round() as usize;
        (0..=count).map(move |i| low + i as f64 * step)
    }

    /// A mark in words, with as many digits as tell it from the next.
    fn label(&self, value: f64) -> String {
        let digits = (-self.step.log10().floor()).max(0.0) as usize;
        number(value, digits)
    }

    /// Between 0 and 1.
    fn part(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

/// A number with some digits, and no minus before nothing.
fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| matches!(c, '0' | '.')) => rest.to_owned(),
        Some(rest) => format!("−{rest}"),
        None => text,
    }
}

/// Where things stand on the page.
struct Page {
    x: Scale,
    y: Scale,
    top: f64,
}

impl Page {
    fn across(&self, d: f64) -> f64 {
        LEFT + self.x.part(d) * (WIDTH - LEFT - RIGHT)
    }

    fn down(&self, gain: f64) -> f64 {
        self.top + (1.0 - self.y.part(gain)) * PLOT
    }
}

/// Samples of a fitted curve up to its last point.
fn samples(curve: &Curve, fit: &Fit) -> Vec<(f64, f64)> {
    let last = curve.points.last().map_or(0.0, Point::distance);
    let at = |i: u32| f64::from(i) / 120.0 * last;
    (0..=120).map(|i| (at(i), fit.gain(at(i)))).collect()
}

/// The peak of the gold curve, where there are points as far as it.
fn peak(curve: &Curve) -> Option<(f64, f64)> {
    let last = curve.points.last()?.distance();
    curve.gold.as_ref()?.peak().filter(|(d, _)| *d <= last)
}

/// The chart. `fitted` says whether a law was asked for. Every curve has a point.
pub(crate) fn svg(curves: &[Curve], fitted: bool) -> String {
    let entries = legend(curves, fitted);
    let lines = entries.iter().map(|entry| entry.line).max().unwrap_or(0) + 1;
    let page = Page {
        x: Scale::over(0.0, farthest(curves)),
        y: heights(curves),
        top: 16.0 + lines as f64 * LINE,
    };
    let height = page.top + PLOT + 60.0;
    let mut out = String::new();
    // Writing to a text can't fail.
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"levain-chart\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\" width=\"{WIDTH:.0}\" height=\"{height:.0}\" role=\"img\">\n\
         <title>Gain under proxy and gold by distance</title>\n<style>\n{STYLE}</style>\n\
         <rect class=\"ground\" width=\"{WIDTH:.0}\" height=\"{height:.0}\"/>"
    );
    axes(&page, &mut out);
    for (index, curve) in curves.iter().enumerate() {
        for side in [Side::Proxy, Side::Gold] {
            let colour = colour(curves.len(), index, side);
            draw(curve, side, colour, &page, &mut out);
        }
    }
    for entry in &entries {
        entry.draw(&mut out);
    }
    out += "</svg>\n";
    out
}

fn colour(curves: usize, index: usize, side: Side) -> &'static str {
    match (curves, side) {
        (1, Side::Gold) => PAIR[0],
        (1, Side::Proxy) => PAIR[1],
        _ => COLOURS[index % COLOURS.len()],
    }
}

fn farthest(curves: &[Curve]) -> f64 {
    let all = curves.iter().flat_map(|curve| &curve.points);
    all.map(Point::distance).fold(0.0, f64::max)
}

/// The axis of gains: all points with their errors and all curves, and 0.
fn heights(curves: &[Curve]) -> Scale {
    let (mut low, mut high) = (0.0f64, 0.0f64);
    for curve in curves {
        for side in [Side::Proxy, Side::Gold] {
            let start = side.score(&curve.points[0]);
            for point in &curve.points {
                let gain = side.score(point) - start;
                low = low.min(gain - side.error(point));
                high = high.max(gain + side.error(point));
            }
            for (_, gain) in side.fit(curve).map_or(Vec::new(), |f| samples(curve, f)) {
                low = low.min(gain);
                high = high.max(gain);
            }
        }
    }
    Scale::over(low, high)
}

fn axes(page: &Page, out: &mut String) {
    let (left, right) = (LEFT, WIDTH - RIGHT);
    let bottom = page.top + PLOT;
    for mark in page.y.marks() {
        let y = page.down(mark);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{left:.1}\" y1=\"{y:.1}\" x2=\"{right:.1}\" y2=\"{y:.1}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 8.0,
            y + 4.5,
            page.y.label(mark)
        );
    }
    for mark in page.x.marks() {
        let x = page.across(mark);
        let _ = writeln!(
            out,
            "<line class=\"axis\" x1=\"{x:.1}\" y1=\"{bottom:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>\n\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 5.0,
            bottom + 20.0,
            page.x.label(mark)
        );
    }
    let zero = page.down(0.0);
    let middle = page.top + PLOT / 2.0;
    let _ = writeln!(
        out,
        "<line class=\"axis\" x1=\"{left:.1}\" y1=\"{bottom:.1}\" x2=\"{right:.1}\" y2=\"{bottom:.1}\"/>\n\
         <line class=\"axis\" x1=\"{left:.1}\" y1=\"{:.1}\" x2=\"{left:.1}\" y2=\"{bottom:.1}\"/>\n\
         <line class=\"axis\" x1=\"{left:.1}\" y1=\"{zero:.1}\" x2=\"{right:.1}\" y2=\"{zero:.1}\" stroke-opacity=\"0.6\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">distance d = √KL from the start (nats)</text>\n\
         <text x=\"18\" y=\"{middle:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 18 {middle:.1})\">gain over the start</text>",
        page.top,
        f64::midpoint(left, right),
        bottom + 44.0
    );
}

/// One judge's points and curve.
fn draw(curve: &Curve, side: Side, colour: &str, page: &Page, out: &mut String) {
    let start = side.score(&curve.points[0]);
    if let Some(fit) = side.fit(curve) {
        let path: Vec<String> = samples(curve, fit)
            .into_iter()
            .map(|(d, gain)| format!("{:.1},{:.1}", page.across(d), page.down(gain)))
            .collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{}/>",
            path.join(" "),
            side.dashes()
        );
    }
    if let Some((d, gain)) = peak(curve).filter(|_| side == Side::Gold) {
        let (x, y) = (page.across(d), page.down(gain));
        let anchor = match x > WIDTH - 120.0 {
            true => ("end", x - 7.0),
            false => ("start", x + 7.0),
        };
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-dasharray=\"2 4\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{}\">peak {}</text>",
            page.top + PLOT,
            anchor.1,
            page.top + PLOT - 8.0,
            anchor.0,
            number(d, 2)
        );
    }
    for point in &curve.points {
        let gain = side.score(point) - start;
        let (x, y) = (page.across(point.distance()), page.down(gain));
        let error = side.error(point);
        if error > 0.0 {
            let (high, low) = (page.down(gain + error), page.down(gain - error));
            let (before, behind) = (x - 4.0, x + 4.0);
            let _ = writeln!(
                out,
                "<path d=\"M{x:.1} {high:.1}V{low:.1}M{before:.1} {high:.1}H{behind:.1}M{before:.1} {low:.1}H{behind:.1}\" stroke=\"{colour}\" fill=\"none\"/>"
            );
        }
        let _ = writeln!(
            out,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" stroke=\"{colour}\" stroke-width=\"2\"{}><title>{}: d {}, gain {}</title></circle>",
            filled(side, colour),
            escaped(&point.name),
            number(point.distance(), 3),
            number(gain, 4)
        );
    }
}

/// Gold points are full, proxy points hollow.
fn filled(side: Side, colour: &str) -> String {
    match side {
        Side::Gold => format!(" fill=\"{colour}\""),
        Side::Proxy => " class=\"hollow\"".to_owned(),
    }
}

/// A word of the legend, with a sample of a line before it.
struct Entry {
    words: String,
    colour: Option<&'static str>,
    side: Option<Side>,
    line: usize,
    x: f64,
}

/// What the legend says, line by line.
fn legend(curves: &[Curve], fitted: bool) -> Vec<Entry> {
    let mut all: Vec<(String, Option<&'static str>, Option<Side>)> = Vec::new();
    let many = curves.len() > 1;
    for (side, words) in [
        (Side::Proxy, "proxy, which is optimized"),
        (Side::Gold, "gold"),
    ] {
        // Of several curves the line says the judge and the colour the curve.
        let colour = if many { COLOURS[7] } else { colour(1, 0, side) };
        all.push((words.to_owned(), Some(colour), Some(side)));
    }
    let errors = curves.iter().flat_map(|curve| &curve.points);
    if errors
        .map(|p| Side::Proxy.error(p) + Side::Gold.error(p))
        .any(|error| error > 0.0)
    {
        all.push(("bars: ± 1 standard error".to_owned(), None, None));
    }
    if fitted && curves.iter().any(|curve| peak(curve).is_some()) {
        all.push(("dotted: peak of gold".to_owned(), None, None));
    }
    if many {
        for (index, curve) in curves.iter().enumerate() {
            let colour = colour(curves.len(), index, Side::Gold);
            all.push((curve.name.clone(), Some(colour), None));
        }
    }
    let (mut line, mut x) = (0, LEFT);
    let place = |(words, colour, side): (String, Option<&'static str>, Option<Side>)| {
        let sample = if colour.is_some() { 38.0 } else { 0.0 };
        let width = sample + words.chars().count() as f64 * LETTER + 18.0;
        if x + width > WIDTH && x > LEFT {
            line += 1;
            x = LEFT;
        }
        let entry = Entry {
            words,
            colour,
            side,
            line,
            x,
        };
        x += width;
        entry
    };
    all.into_iter().map(place).collect()
}

impl Entry {
    fn draw(&self, out: &mut String) {
        let (mut x, y) = (self.x, 20.0 + self.line as f64 * LINE);
        if let Some(colour) = self.colour {
            let dashes = self.side.map_or("", Side::dashes);
            let _ = writeln!(
                out,
                "<line x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" stroke-width=\"{}\"{dashes}/>",
                x + 30.0,
                if self.side.is_some() { 2 } else { 5 }
            );
            if let Some(side) = self.side {
                let _ = writeln!(
                    out,
                    "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4.5\" stroke=\"{colour}\" stroke-width=\"2\"{}/>",
                    x + 15.0,
                    filled(side, colour)
                );
            }
            x += 38.0;
        }
        let _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
            y + 4.5,
            escaped(&self.words)
        );
    }
}

/// A text as XML has it.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_numbers() {
        let marks = |low, high| {
            let scale = Scale::over(low, high);
            scale
                .marks()
                .map(|m| scale.label(m))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(marks(0.0, 2.2), "0.0 0.5 1.0 1.5 2.0 2.5");
        assert_eq!(marks(-0.13, 0.4), "−0.2 −0.1 0.0 0.1 0.2 0.3 0.4");
        assert_eq!(marks(0.0, 37.0), "0 10 20 30 40");
        assert_eq!(marks(0.0, 0.0).split(' ').count(), 7);
    }

    #[test]
    fn names_are_written_as_xml_has_them() {
        assert_eq!(escaped("a<b>&\"c\"\n"), "a&lt;b&gt;&amp;&quot;c&quot; ");
        assert_eq!(number(-0.0004, 2), "0.00");
        assert_eq!(number(-0.04, 2), "−0.04");
    }
}
