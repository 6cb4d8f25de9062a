//! Rotary frequencies, in f64.
//!
//! Rotary embedding: Su et al. 2021, <https://arxiv.org/abs/2104.09864>. The scaled variants give the frequencies
//! that the checkpoints were trained with, so they follow what Hugging Face transformers computes
//! (`modeling_rope_utils.py`): linear (Chen et al. 2023, <https://arxiv.org/abs/2306.15595>), llama3 (Grattafiori et
//! al. 2024), YaRN (Peng et al. 2023, <https://arxiv.org/abs/2309.00071>), LongRoPE (Ding et al. 2024,
//! <https://arxiv.org/abs/2402.13753>).

use std::f64::consts::TAU;

/// The rotary embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Dimensions of a head that rotate, from the first; even.
    pub rotary_dim: usize,
    /// How the frequencies are changed for contexts longer than the first training's.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are changed for long contexts. Lengths are in tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Unchanged.
    Default,
    /// All divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// High frequencies unchanged, low ones divided, a smooth passage between.
    Llama3(Llama3),
    /// As llama3 with a linear ramp over dimensions, and a factor on cosine and sine.
    Yarn(Yarn),
    /// A divisor for every pair, other ones for long sequences.
    LongRope(LongRope),
    /// A divisor for every pair, as GGUF files store scaling in `rope_freqs.weight`.
    FrequencyFactors(Vec<f64>),
}

/// Parameters of llama3 scaling.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama3 {
    /// Divisor of the low frequencies.
    pub factor: f64,
    /// Wavelengths above `original_context / low_freq_factor` are divided.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_context / high_freq_factor` stay.
    pub high_freq_factor: f64,
    /// Context of the first training.
    pub original_context: usize,
}

/// Parameters of YaRN.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// Divisor of the low frequencies.
    pub factor: f64,
    /// Pairs that turn more often than this within the original context stay.
    pub beta_fast: f64,
    /// Pairs that turn less often than this within the original context are divided.
    pub beta_slow: f64,
    /// Factor of cosine and sine; computed from `factor` where absent.
    pub attention_factor: Option<f64>,
    /// Weights of `ln(factor)` above and below the bar where the attention factor is computed.
    pub mscale: Option<(f64, f64)>,
    /// Context of the first training.
    pub original_context: usize,
    /// Whether the ramp starts and ends at whole dimensions.
    pub ramp: YarnRamp,
}

/// Where the ramp of YaRN starts and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum YarnRamp {
    /// At whole dimensions, widened: the usual form.
    WholeDimensions,
    /// Exactly where the numbers of turns say (`"truncate": false`).
    Exact,
}

/// Parameters of LongRoPE.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// Divisor of every pair's frequency in sequences up to `original_context`.
    pub short_factor: Vec<f64>,
    /// Divisor of every pair's frequency in longer sequences.
    pub long_factor: Vec<f64>,
    /// How much longer the context has become.
    pub factor: f64,
    /// Factor of cosine and sine; computed from `factor` where absent.
    pub attention_factor: Option<f64>,
    /// Context of the first training.
    pub original_context: usize,
}

/// The frequencies of one kind of sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Angle per position of each pair, in radians: `rotary_dim / 2` of them.
    pub inverse_frequencies: Vec<f64>,
    /// Factor of cosine and sine.
    pub attention_factor: f64,
}

/// Frequencies that cannot be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RopeError {
    /// Another number of divisors than pairs.
    #[error("rotary scaling: {which} has {got} factors, but {wanted} pairs of dimensions rotate")]
    FactorCount {
        /// Which list.
        which: &'static str,
        /// Pairs.
        wanted: usize,
        /// Length of the list.
        got: usize,
    },
    /// A frequency or factor that is no positive finite number.
    #[error("rotary scaling: {what} is {got}; it must be a positive finite number")]
    NotPositive {
        /// Which number.
        what: String,
        /// Its value.
        got: f64,
    },
}

impl RopeConfig {
    /// The frequency tables: one, or for LongRoPE the short one and the long one.
    ///
    /// # Errors
    /// [`RopeError`] where a list of factors has the wrong length or a result is no positive finite number.
    pub fn tables(&self) -> Result<Vec<RopeTable>, RopeError> {
        let base = self.unscaled();
        let single = |frequencies, attention_factor| vec![table(frequencies, attention_factor)];
        let tables = match &self.scaling {
            RopeScaling::Default => single(base, 1.0),
            RopeScaling::Linear { factor } => single(base.iter().map(|f| f / factor).collect(), 1.0),
            RopeScaling::Llama3(llama3) => single(base.iter().map(|&f| llama3.scale(f)).collect(), 1.0),
            RopeScaling::Yarn(yarn) => {
                single(yarn.scale(&base, self.rotary_dim, self.theta), yarn.attention_factor())
            }
            RopeScaling::LongRope(longrope) => {
                let attention_factor = longrope.attention_factor();
                vec![
                    table(divide(&base, &longrope.short_factor, "short_factor")?, attention_factor),
                    table(divide(&base, &longrope.long_factor, "long_factor")?, attention_factor),
                ]
            }
            RopeScaling::FrequencyFactors(factors) => {
                single(divide(&base, factors, "rope_freqs.weight")?, 1.0)
            }
        };
        tables.iter().try_for_each(check)?;
        Ok(tables)
    }

    /// Sequences longer than this many tokens use the second table at all their positions.
    pub fn long_beyond(&self) -> Option<usize> {
        match &self.scaling {
            RopeScaling::LongRope(longrope) => Some(longrope.original_context),
            _ => None,
        }
    }

    /// `theta^(-2i / rotary_dim)` for each pair `i`.
    fn unscaled(&self) -> Vec<f64> {
        let dim = self.rotary_dim as f64;
        (0..self.rotary_dim / 2).map(|pair| self.theta.powf(-((2 * pair) as f64) / dim)).collect()
    }
}

fn table(inverse_frequencies: Vec<f64>, attention_factor: f64) -> RopeTable {
    RopeTable { inverse_frequencies, attention_factor }
}

fn divide(base: &[f64], factors: &[f64], which: &'static str) -> Result<Vec<f64>, RopeError> {
    if factors.len() != base.len() {
        return Err(RopeError::FactorCount { which, wanted: base.len(), got: factors.len() });
    }
    Ok(base.iter().zip(factors).map(|(f, factor)| f / factor).collect())
}

fn check(table: &RopeTable) -> Result<(), RopeError> {
    let positive = |got: f64| got.is_finite() && got > 0.0;
    if let Some(pair) = table.inverse_frequencies.iter().position(|&f| !positive(f)) {
        let got = table.inverse_frequencies[pair];
        return Err(RopeError::NotPositive { what: format!("the frequency of pair {pair}"), got });
    }
    if !positive(table.attention_factor) {
        let what = "the attention factor".to_owned();
        return Err(RopeError::NotPositive { what, got: table.attention_factor });
    }
    Ok(())
}

impl Llama3 {
    fn scale(&self, frequency: f64) -> f64 {
        let wavelength = TAU / frequency;
        let context = self.original_context as f64;
        if wavelength < context / self.high_freq_factor {
            frequency
        } else if wavelength > context / self.low_freq_factor {
            frequency / self.factor
        } else {
            let smooth = (context / wavelength - self.low_freq_factor)
                / (self.high_freq_factor - self.low_freq_factor);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}

impl Yarn {
    fn scale(&self, base: &[f64], rotary_dim: usize, theta: f64) -> Vec<f64> {
        let (low, high) = self.ramp_ends(rotary_dim as f64, theta);
        let ramp = |pair: usize| ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
        base.iter()
            .enumerate()
            .map(|(pair, f)| f / self.factor * ramp(pair) + f * (1.0 - ramp(pair)))
            .collect()
    }

    /// The pairs between which frequencies go from unchanged to divided.
    fn ramp_ends(&self, dim: f64, theta: f64) -> (f64, f64) {
        // The pair, as a real number, that turns `turns` times within the original context.
        let pair =
            |turns: f64| dim * (self.original_context as f64 / (turns * TAU)).ln() / (2.0 * theta.ln());
        let (low, high) = (pair(self.beta_fast), pair(self.beta_slow));
        let (low, high) = match self.ramp {
            YarnRamp::WholeDimensions => (low.floor(), high.ceil()),
            YarnRamp::Exact => (low, high),
        };
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        // A ramp without width would divide by zero; transformers widens it by this much.
        if low == high { (low, high + 0.001) } else { (low, high) }
    }

    fn attention_factor(&self) -> f64 {
        let scale =
            |weight: f64| if self.factor <= 1.0 { 1.0 } else { 0.1 * weight * self.factor.ln() + 1.0 };
        match (self.attention_factor, self.mscale) {
            (Some(given), _) => given,
            (None, Some((above, below))) => scale(above) / scale(below),
            (None, None) => scale(1.0),
        }
    }
}

impl LongRope {
    fn attention_factor(&self) -> f64 {
        match self.attention_factor {
            Some(given) => given,
            None if self.factor <= 1.0 => 1.0,
            None => (1.0 + self.factor.ln() / (self.original_context as f64).ln()).sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(theta: f64, rotary_dim: usize, scaling: RopeScaling) -> RopeConfig {
        RopeConfig { theta, rotary_dim, scaling }
    }

    fn single(config: &RopeConfig) -> RopeTable {
        let mut tables = config.tables().expect("sound");
        assert_eq!((tables.len(), config.long_beyond()), (1, None));
        tables.remove(0)
    }

    fn assert_close(got: &[f64], wanted: &[f64]) {
        assert_eq!(got.len(), wanted.len());
        for (got, wanted) in got.iter().zip(wanted) {
            assert!((got / wanted - 1.0).abs() < 1e-14, "{got} is not {wanted}");
        }
    }

    #[test]
    fn default_and_linear() {
        // 10000^(0, -1/4, -1/2, -3/4)
        let wanted = [1.0, 0.1, 0.01, 0.001];
        assert_close(&single(&rope(1e4, 8, RopeScaling::Default)).inverse_frequencies, &wanted);
        let linear = single(&rope(1e4, 8, RopeScaling::Linear { factor: 4.0 }));
        assert_close(&linear.inverse_frequencies, &wanted.map(|f| f / 4.0));
        assert_eq!(linear.attention_factor, 1.0);
    }

    #[test]
    fn llama3_keeps_blends_and_divides() {
        let llama3 =
            Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 100 };
        let table = single(&rope(1e4, 8, RopeScaling::Llama3(llama3)));
        // Wavelengths 6.3, 62.8, 628, 6283; unchanged below 25, divided above 100.
        let smooth = (100.0 / (TAU / 0.1) - 1.0) / 3.0;
        let blended = 0.1 * ((1.0 - smooth) / 8.0 + smooth);
        assert_close(&table.inverse_frequencies, &[1.0, blended, 0.01 / 8.0, 0.001 / 8.0]);
    }

    fn yarn(ramp: YarnRamp) -> Yarn {
        Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            mscale: None,
            original_context: 2048,
            ramp,
        }
    }

    #[test]
    fn yarn_ramps_over_dimensions() {
        // dim 16, theta 10000: pair(32) = 16 ln(2048 / 64 pi) / (2 ln 10000) = 2.016, pair(1) = 5.026.
        let table = single(&rope(1e4, 16, RopeScaling::Yarn(yarn(YarnRamp::WholeDimensions))));
        let base: Vec<f64> = (0..8).map(|pair| 10f64.powf(-f64::from(pair) / 2.0)).collect();
        let ramp = [0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0];
        let wanted: Vec<f64> = base.iter().zip(ramp).map(|(f, r)| f * (1.0 - r) + f / 4.0 * r).collect();
        assert_close(&table.inverse_frequencies, &wanted);
        assert!((table.attention_factor - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-15);

        let exact = single(&rope(1e4, 16, RopeScaling::Yarn(yarn(YarnRamp::Exact))));
        let low = 16.0 * (2048.0 / (32.0 * TAU)).ln() / (2.0 * 1e4f64.ln());
        let high = 16.0 * (2048.0 / TAU).ln() / (2.0 * 1e4f64.ln());
        let ramp = (3.0 - low) / (high - low);
        assert_close(&exact.inverse_frequencies[2..4], &[base[2], base[3] * (1.0 - 0.75 * ramp)]);
        assert_close(&exact.inverse_frequencies[6..], &[base[6] / 4.0, base[7] / 4.0]);
    }

    #[test]
    fn yarn_attention_factor_may_be_given() {
        let factor = |change: fn(&mut Yarn)| {
            let mut yarn = yarn(YarnRamp::WholeDimensions);
            change(&mut yarn);
            single(&rope(1e4, 16, RopeScaling::Yarn(yarn))).attention_factor
        };
        assert_eq!(factor(|yarn| yarn.attention_factor = Some(1.5)), 1.5);
        assert_eq!(factor(|yarn| yarn.mscale = Some((0.7, 0.7))), 1.0);
        assert_eq!(factor(|yarn| yarn.factor = 1.0), 1.0);
    }

    #[test]
    fn longrope_has_a_short_and_a_long_table() {
        let longrope = LongRope {
            short_factor: vec![1.0, 2.0],
            long_factor: vec![4.0, 8.0],
            factor: 8.0,
            attention_factor: None,
            original_context: 32,
        };
        let config = rope(100.0, 4, RopeScaling::LongRope(longrope.clone()));
        let tables = config.tables().expect("sound");
        assert_eq!(config.long_beyond(), Some(32));
        assert_close(&tables[0].inverse_frequencies, &[1.0, 0.05]);
        assert_close(&tables[1].inverse_frequencies, &[0.25, 0.0125]);
        // ln 8 / ln 32 = 3 / 5
        assert_close(&[tables[0].attention_factor, tables[1].attention_factor], &[1.6f64.sqrt(); 2]);

        let short = LongRope { short_factor: vec![1.0], ..longrope };
        let error = rope(100.0, 4, RopeScaling::LongRope(short)).tables().expect_err("too few");
        assert_eq!(
            error.to_string(),
            "rotary scaling: short_factor has 1 factors, but 2 pairs of dimensions rotate"
        );
    }

    #[test]
    fn frequency_factors_divide_and_must_be_positive() {
        let factors = |factors: &[f64]| rope(100.0, 4, RopeScaling::FrequencyFactors(factors.to_vec()));
        assert_close(&single(&factors(&[1.0, 8.0])).inverse_frequencies, &[1.0, 0.0125]);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = factors(&[1.0, bad]).tables().expect_err("no frequency");
            assert!(error.to_string().starts_with("rotary scaling: the frequency of pair 1 is"), "{error}");
        }
    }
}
