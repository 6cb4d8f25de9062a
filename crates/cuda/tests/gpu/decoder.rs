//! Decoders with weights that look random.

use mantissa_numerics::Format;
use mantissa_ops::builder::{AttentionArgs, FfnArgs, QkvArgs};
use mantissa_ops::conformance::data::MemorySource;
use mantissa_ops::op::{Heads, Mask};
use mantissa_ops::program::{CacheSpec, RopeSet, RopeSpec, WeightPart};
use mantissa_ops::{Program, ProgramBuilder};

/// What a decoder is like.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    pub layers: usize,
    pub heads: Heads,
    pub hidden: usize,
    pub intermediate: usize,
    pub vocabulary: usize,
    pub context: usize,
    /// The largest bias of queries, keys and values, where they have one.
    pub bias: Option<f32>,
}

impl Decoder {
    /// Its program, and its weights.
    pub fn model(&self) -> (Program, MemorySource) {
        (self.program(), self.weights())
    }

    fn qkv_rows(&self) -> usize {
        self.heads.query_width() + 2 * self.heads.kv_width()
    }

    fn program(&self) -> Program {
        let &Decoder { layers, heads, hidden, intermediate, vocabulary, context, bias } = self;
        let mut builder = ProgramBuilder::new("decoder", context);
        let frequency = |pair: usize| 10_000_f64.powf(-((2 * pair) as f64) / heads.dim as f64);
        let frequencies = (0..heads.dim / 2).map(frequency).collect();
        let set = RopeSet { inverse_frequencies: frequencies, attention_factor: 1.0 };
        builder.rope(RopeSpec { rotary_dim: heads.dim, sets: vec![set], long_beyond: None });
        builder.cache(CacheSpec { layers, heads });
        let stream = builder.embedding("table", vocabulary, hidden);
        for layer in 0..layers {
            let name = |part: &str| format!("{layer}.{part}");
            let normed = builder.rms_norm(&name("attention_norm"), &name("norm1"), stream, 1e-6);
            let rows = self.qkv_rows();
            let biases = bias.map(|_| vec![WeightPart::whole(name("bias"), rows)]);
            let weights = vec![WeightPart::whole(name("qkv"), rows)];
            let args = QkvArgs { weights, biases, head_norms: None, heads, layer };
            let query = builder.qkv(&name("qkv"), normed, args);
            let args = AttentionArgs { heads, scale: 0.125, mask: Mask::Causal, layer };
            let attended = builder.attention(&name("attention"), query, args);
            builder.project_into(&name("out"), &name("out"), attended, stream);
            let normed = builder.rms_norm(&name("ffn_norm"), &name("norm2"), stream, 1e-6);
            let gate_up = vec![
                WeightPart::whole(name("gate"), intermediate),
                WeightPart::whole(name("up"), intermediate),
            ];
            let args = FfnArgs { gate_up, down: name("down"), intermediate };
            builder.ffn_into(&name("ffn"), normed, stream, args);
        }
        let last = builder.rms_norm("last_norm", "last", stream, 1e-6);
        builder.logits("table", last, vocabulary);
        builder.finish()
    }

    fn weights(&self) -> MemorySource {
        let &Decoder { layers, heads, hidden, intermediate, vocabulary, bias, .. } = self;
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        let mut source = MemorySource::default();
        let mut matrix = |name: String, rows: usize, columns: usize| {
            // Sums of so many products are about as large as their inputs.
            let scale = (3.0 / columns as f32).sqrt();
            source.add(&name, &[rows, columns], Format::F32, &numbers.around(0.0, scale, rows * columns));
        };
        matrix("table".to_owned(), vocabulary, hidden);
        for layer in 0..layers {
            matrix(format!("{layer}.qkv"), self.qkv_rows(), hidden);
            matrix(format!("{layer}.out"), hidden, heads.query_width());
            matrix(format!("{layer}.gate"), intermediate, hidden);
            matrix(format!("{layer}.up"), intermediate, hidden);
            matrix(format!("{layer}.down"), hidden, intermediate);
        }
        let mut vector = |name: String, length: usize, middle: f32, spread: f32| {
            source.add(&name, &[length], Format::F32, &numbers.around(middle, spread, length));
        };
        vector("last".to_owned(), hidden, 1.0, 0.3);
        for layer in 0..layers {
            vector(format!("{layer}.norm1"), hidden, 1.0, 0.3);
            vector(format!("{layer}.norm2"), hidden, 1.0, 0.3);
            if let Some(spread) = bias {
                vector(format!("{layer}.bias"), self.qkv_rows(), 0.0, spread);
            }
        }
        source
    }
}

/// Numbers that look random (Marsaglia's xorshift).
struct Numbers(u64);

impl Numbers {
    /// Up to `spread` from `middle`.
    fn around(&mut self, middle: f32, spread: f32, count: usize) -> Vec<f32> {
        let mut next = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
        };
        (0..count).map(|_| middle + spread * next()).collect()
    }
}
