//! Axes: from values to pixels, and the values that are written beside them.

/// What an axis shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    name: String,
    unit: String,
    numbers: Numbers,
}

/// How values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numbers {
    /// With the prefixes of the SI: 12 GB/s.
    Prefixed,
    /// As they are.
    Plain,
}

/// Prefixes of the SI and their factors, the largest first.
const PREFIXES: [(f64, &str); 10] = [
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "\u{3bc}"),
    (1e-9, "n"),
    (1e-12, "p"),
];

impl Axis {
    /// Of values in this unit, which takes prefixes: `Axis::prefixed("time", "s")` says 1.5 ms.
    pub fn prefixed(name: impl Into<String>, unit: impl Into<String>) -> Axis {
        Axis { name: name.into(), unit: unit.into(), numbers: Numbers::Prefixed }
    }

    /// Of values that are written as they are, in a unit or, if that is empty, in none.
    pub fn plain(name: impl Into<String>, unit: impl Into<String>) -> Axis {
        Axis { name: name.into(), unit: unit.into(), numbers: Numbers::Plain }
    }

    /// What stands beside the axis where values are divided by this prefix.
    pub(super) fn title(&self, prefix: Prefix) -> String {
        match format!("{}{}", prefix.name, self.unit).as_str() {
            "" => self.name.clone(),
            unit => format!("{} ({unit})", self.name),
        }
    }

    /// What stands beside an axis whose ticks say their units.
    pub(super) fn name_alone(&self) -> String {
        match self.numbers {
            Numbers::Prefixed => self.name.clone(),
            Numbers::Plain => self.title(Prefix::NONE),
        }
    }

    /// The prefix under which values up to this one are written.
    pub(super) fn prefix(&self, most: f64) -> Prefix {
        match self.numbers {
            Numbers::Prefixed => Prefix::of(most),
            Numbers::Plain => Prefix::NONE,
        }
    }

    /// What stands beside a tick of a logarithmic axis, which has no prefix in common.
    pub(super) fn tick(&self, value: f64) -> String {
        match self.numbers {
            Numbers::Prefixed => {
                let prefix = Prefix::of(value);
                match format!("{}{}", prefix.name, self.unit).as_str() {
                    "" => short(value),
                    unit => format!("{} {unit}", short(value / prefix.factor)),
                }
            }
            Numbers::Plain if (1e-3..=1e5).contains(&value) => short(value),
            Numbers::Plain => power(value),
        }
    }
}

/// A prefix of the SI.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prefix {
    pub factor: f64,
    pub name: &'static str,
}

impl Prefix {
    pub const NONE: Prefix = Prefix { factor: 1.0, name: "" };

    fn of(value: f64) -> Prefix {
        // A rounding error below a thousand is a thousand.
        let found = PREFIXES.iter().find(|(factor, _)| value.abs() * (1.0 + 1e-9) >= *factor);
        found.map_or(Prefix::NONE, |&(factor, name)| Prefix { factor, name })
    }
}

/// A number to three digits, without zeros at its end.
pub fn short(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let magnitude = value.abs().log10().floor();
    if !(-4.0..6.0).contains(&magnitude) {
        return format!("{value:.1e}");
    }
    let decimals = if magnitude >= 2.0 { 0 } else { (2.0 - magnitude) as usize };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A number as a power of ten.
fn power(value: f64) -> String {
    let exponent = (value.log10() + 1e-9).floor();
    let digits = |digit: char| match digit {
        '-' => '\u{207b}',
        '1' => '\u{b9}',
        '2' => '\u{b2}',
        '3' => '\u{b3}',
        '4' => '\u{2074}',
        '5' => '\u{2075}',
        '6' => '\u{2076}',
        '7' => '\u{2077}',
        '8' => '\u{2078}',
        '9' => '\u{2079}',
        _ => '\u{2070}',
    };
    let exponent_text: String = format!("{exponent:.0}").chars().map(digits).collect();
    match short(value / 10_f64.powf(exponent)).as_str() {
        "1" => format!("10{exponent_text}"),
        mantissa => format!("{mantissa}\u{d7}10{exponent_text}"),
    }
}

/// How distances grow along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Linear,
    Logarithmic,
}

/// An axis with its ends: values here, pixels there.
#[derive(Clone, Debug, PartialEq)]
pub struct Ruler {
    scale: Scale,
    values: (f64, f64),
    pixels: (f64, f64),
    pub ticks: Vec<f64>,
}

impl Ruler {
    /// Holds all of the values and begins and ends at round ones. Only positive values are on a logarithmic axis.
    pub fn new(scale: Scale, values: impl Iterator<Item = f64>, pixels: (f64, f64)) -> Ruler {
        let shown = values.filter(|&value| scale.shows(value));
        let ends = shown.fold(None, |ends: Option<(f64, f64)>, value| {
            let (low, high) = ends.unwrap_or((value, value));
            Some((low.min(value), high.max(value)))
        });
        match scale {
            Scale::Linear => {
                let (low, high) = ends.unwrap_or((0.0, 1.0));
                let high = if high > low { high } else { low + low.abs().max(1.0) };
                let step = step(high - low);
                let (first, last) = ((low / step).floor(), (high / step - 1e-9).ceil());
                let ticks = (0..=(last - first) as u32).map(|tick| (first + f64::from(tick)) * step);
                Ruler { scale, values: (first * step, last * step), pixels, ticks: ticks.collect() }
            }
            Scale::Logarithmic => {
                let (low, high) = ends.unwrap_or((1.0, 10.0));
                let values = (round_down(low), round_up(if high > low { high } else { low * 1.01 }));
                Ruler { scale, values, pixels, ticks: decades(values) }
            }
        }
    }

    /// Where a value is.
    pub fn at(&self, value: f64) -> f64 {
        let (low, high) = self.values;
        let share = match self.scale {
            Scale::Linear => (value - low) / (high - low),
            Scale::Logarithmic => (value / low).ln() / (high / low).ln(),
        };
        self.pixels.0 + share * (self.pixels.1 - self.pixels.0)
    }

    /// Holds the values on a linear axis and nothing beyond them, such as numbers of layers.
    pub fn tight(values: impl Iterator<Item = f64> + Clone, pixels: (f64, f64)) -> Ruler {
        let mut ruler = Ruler::new(Scale::Linear, values.clone(), pixels);
        let shown = values.filter(|&value| Scale::Linear.shows(value));
        let (low, high) = shown
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low < high {
            ruler.values = (low, high);
            ruler.ticks.retain(|tick| (low..=high).contains(tick));
        }
        ruler
    }

    /// How distances grow along it.
    pub fn scale(&self) -> Scale {
        self.scale
    }

    /// The ends.
    pub fn values(&self) -> (f64, f64) {
        self.values
    }
}

impl Scale {
    /// Whether a value has a place on an axis.
    pub fn shows(self, value: f64) -> bool {
        value.is_finite() && (self == Scale::Linear || value > 0.0)
    }
}

/// A round distance of ticks, so that there are about five.
fn step(range: f64) -> f64 {
    let power = 10_f64.powf((range / 5.0).log10().floor());
    let wanted = range / 5.0 / power;
    power * [1.0, 2.0, 5.0].into_iter().find(|&step| wanted <= step * 1.000_001).unwrap_or(10.0)
}

/// The largest of 1, 2 and 5 times a power of ten that is not above a value.
fn round_down(value: f64) -> f64 {
    let power = 10_f64.powf((value.log10() + 1e-9).floor());
    power * [5.0, 2.0].into_iter().find(|&digit| value >= power * digit * (1.0 - 1e-9)).unwrap_or(1.0)
}

/// The smallest of 1, 2 and 5 times a power of ten that is not below a value.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf((value.log10() + 1e-9).floor());
    power * [1.0, 2.0, 5.0].into_iter().find(|&digit| value <= power * digit * (1.0 + 1e-9)).unwrap_or(10.0)
}

/// Powers of ten between two values, at most nine; twos and fives between them where there are few.
fn decades((low, high): (f64, f64)) -> Vec<f64> {
    let (first, last) = ((low.log10() - 1e-9).ceil(), (high.log10() + 1e-9).floor());
    let span = (high / low).log10();
    let every = (span / 8.0).ceil().max(1.0);
    let digits: &[f64] = if span <= 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let mut ticks = Vec::new();
    let mut exponent = (first / every).floor() * every - every;
    while exponent <= last {
        ticks.extend(digits.iter().map(|digit| digit * 10_f64.powf(exponent)));
        exponent += every;
    }
    ticks.retain(|tick| (low * (1.0 - 1e-9)..=high * (1.0 + 1e-9)).contains(tick));
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (1234.0, "1234"),
            (12.34, "12.3"),
            (0.012_34, "0.0123"),
            (1.0, "1"),
            (100.0, "100"),
            (2.5, "2.5"),
            (1.234e-6, "1.2e-6"),
        ] {
            assert_eq!(short(value), text);
        }
        assert_eq!(power(1e-7), "10\u{207b}\u{2077}");
        assert_eq!(power(2e12), "2\u{d7}10\u{b9}\u{b2}");
    }

    #[test]
    fn units_take_prefixes() {
        let time = Axis::prefixed("time", "s");
        assert_eq!(time.title(time.prefix(0.0021)), "time (ms)");
        assert_eq!(time.tick(2e-5), "20 \u{3bc}s");
        assert_eq!(Axis::prefixed("reads", "B/s").tick(1e12), "1 TB/s");
        let plain = Axis::plain("layer", "");
        assert_eq!(plain.title(plain.prefix(1e6)), "layer");
        assert_eq!(plain.tick(0.01), "0.01");
    }

    #[test]
    fn linear_axes_hold_their_values_between_round_ones() {
        let ruler = Ruler::new(Scale::Linear, [0.0, 23.0, f64::NAN].into_iter(), (100.0, 400.0));
        assert_eq!(ruler.ticks, [0.0, 5.0, 10.0, 15.0, 20.0, 25.0]);
        assert_eq!((ruler.at(0.0), ruler.at(25.0), ruler.at(12.5)), (100.0, 400.0, 250.0));
        let alone = Ruler::new(Scale::Linear, [3.0].into_iter(), (0.0, 1.0));
        assert!(alone.values().0 <= 3.0 && alone.values().1 > 3.0);
    }

    #[test]
    fn tight_axes_end_where_their_values_do() {
        let ruler = Ruler::tight([-1.0, 23.0].into_iter(), (0.0, 240.0));
        assert_eq!((ruler.at(-1.0), ruler.at(23.0)), (0.0, 240.0));
        assert_eq!(ruler.ticks, [0.0, 5.0, 10.0, 15.0, 20.0]);
        let alone = Ruler::tight([3.0].into_iter(), (0.0, 1.0));
        assert!(alone.values().0 <= 3.0 && alone.values().1 > 3.0);
    }

    #[test]
    fn logarithmic_axes_hold_their_values_between_round_ones() {
        let of = |values: &[f64]| Ruler::new(Scale::Logarithmic, values.iter().copied(), (0.0, 100.0));
        let ruler = of(&[3e-7, 0.0, -1.0, 0.9]);
        assert_eq!(ruler.values().1, 1.0);
        assert!((ruler.values().0 / 2e-7 - 1.0).abs() < 1e-9);
        assert_eq!(ruler.ticks.len(), 7, "{:?}", ruler.ticks);
        assert!((of(&[1.0, 100.0]).at(10.0) - 50.0).abs() < 1e-9);
        assert_eq!(of(&[1.0, 10.0]).ticks.len(), 4);
        let one = of(&[7.0]);
        assert!(one.values().0 < 7.0 && one.values().1 > 7.0 && one.at(7.0).is_finite());
        let wide = of(&[1e-20, 1e20]);
        assert!(wide.ticks.len() <= 9, "{:?}", wide.ticks);
    }
}
