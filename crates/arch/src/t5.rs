//! T5 and its relatives: an encoder, and a decoder that reads it. Conversion only; they cannot be run.

use super::decoder::{Decoder, Needs, Rope};
use super::recipes::Size::{Any, Field, Product};
use super::recipes::{Recipe, Size, When};
use super::{Architecture, Parameter, nothing_generated};
use quantier_tokenizer::VocabKind;

/// Context without a field in the config.
const CONTEXT: u32 = 512;

pub(super) static T5: Architecture = Architecture {
    classes: &[
        "T5WithLMHeadModel",
        "T5ForConditionalGeneration",
        "MT5ForConditionalGeneration",
        "UMT5ForConditionalGeneration",
        "UMT5Model",
    ],
    name: "t5",
    vocabulary: VocabKind::T5,
    parameters: &[SIZES, DECODER_LAYERS, ATTENTION, EPSILON, START, FILE_TYPE],
    tensors: &[EMBEDDINGS, ENCODER_LAYERS, DECODER],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::None,
        refused: Some("it has an encoder, whose output its decoder reads"),
        output_norm: "dec.output_norm",
        needs: Needs {
            optional: &[
                "enc.blk.{}.attn_rel_b",
                "enc.blk.{}.ffn_gate",
                "dec.blk.{}.attn_rel_b",
                "dec.blk.{}.cross_attn_rel_b",
                "dec.blk.{}.ffn_gate",
            ],
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

/// The encoder alone, for embeddings.
pub(super) static T5_ENCODER: Architecture = Architecture {
    classes: &["T5EncoderModel"],
    name: "t5encoder",
    parameters: &[SIZES, ATTENTION, EPSILON, FILE_TYPE],
    tensors: &[EMBEDDINGS, ENCODER_LAYERS],
    decoder: Decoder {
        refused: Some("its attention adds learned biases by distance"),
        output_norm: "enc.output_norm",
        ..T5.decoder
    },
    ..T5
};

const SIZES: &[Parameter] = &[
    Parameter::OrU32("context_length", &["n_positions"], CONTEXT),
    Parameter::U32("embedding_length", &["d_model"]),
    Parameter::U32("feed_forward_length", &["d_ff"]),
    Parameter::Layers,
];

const DECODER_LAYERS: &[Parameter] = &[Parameter::OptionalU32(
    "decoder_block_count",
    &["num_decoder_layers"],
)];

const ATTENTION: &[Parameter] = &[
    Parameter::U32("attention.head_count", &["num_heads"]),
    Parameter::U32("attention.key_length", &["d_kv"]),
    Parameter::U32("attention.value_length", &["d_kv"]),
];

const EPSILON: &[Parameter] = &[
    Parameter::F32("attention.layer_norm_epsilon", &["layer_norm_epsilon"]),
    Parameter::U32(
        "attention.relative_buckets_count",
        &["relative_attention_num_buckets"],
    ),
    Parameter::F32("attention.layer_norm_rms_epsilon", &["layer_norm_epsilon"]),
];

const START: &[Parameter] = &[Parameter::U32(
    "decoder_start_token_id",
    &["decoder_start_token_id"],
)];

const FILE_TYPE: &[Parameter] = &[Parameter::FileType];

const WIDTH: Size = Field(&["d_model"]);
const INNER: Size = Field(&["d_ff"]);
const HEADS: Size = Product(&[Field(&["num_heads"]), Field(&["d_kv"])]);
/// Numbers of a relative position for each head.
const BUCKETS: &[Size] = &[
    Field(&["relative_attention_num_buckets"]),
    Field(&["num_heads"]),
];

/// The embeddings, of which a checkpoint may have copies.
const EMBEDDINGS: &[Recipe] = &[
    Recipe::rename("shared", "token_embd", &[Any, WIDTH])
        .unless_equal(&["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]),
    Recipe::rename("encoder.embed_tokens", "token_embd", &[Any, WIDTH])
        .unless_equal(&["shared.weight", "decoder.embed_tokens.weight"]),
    Recipe::rename("decoder.embed_tokens", "token_embd", &[Any, WIDTH])
        .unless_equal(&["shared.weight", "encoder.embed_tokens.weight"]),
    Recipe::rename("lm_head", "output", &[Any, WIDTH]),
];

const ENCODER_LAYERS: &[Recipe] = &[
    Recipe::rename("encoder.final_layer_norm", "enc.output_norm", &[WIDTH]),
    Recipe::rename(
        "encoder.block.{}.layer.0.layer_norm",
        "enc.blk.{}.attn_norm",
        &[WIDTH],
    ),
    Recipe::rename(
        "encoder.block.{}.layer.0.SelfAttention.q",
        "enc.blk.{}.attn_q",
        &[HEADS, WIDTH],
    ),
    Recipe::rename(
        "encoder.block.{}.layer.0.SelfAttention.k",
        "enc.blk.{}.attn_k",
        &[HEADS, WIDTH],
    ),
    Recipe::rename(
        "encoder.block.{}.layer.0.SelfAttention.v",
        "enc.blk.{}.attn_v",
        &[HEADS, WIDTH],
    ),
    Recipe::rename(
        "encoder.block.{}.layer.0.SelfAttention.o",
        "enc.blk.{}.attn_o",
        &[WIDTH, HEADS],
    ),
    Recipe::rename(
        "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias",
        "enc.blk.{}.attn_rel_b",
        BUCKETS,
    ),
    Recipe::rename(
        "encoder.block.{}.layer.1.layer_norm",
        "enc.blk.{}.ffn_norm",
        &[WIDTH],
    ),
    Recipe::rename(
        "encoder.block.{}.layer.1.DenseReluDense.wi_0",
        "enc.blk.{}.ffn_gate",
        &[INNER, WIDTH],
    ),
    Recipe::rename(
        "encoder.block.{}.layer.1.DenseReluDense.wi_1",
        "enc.blk.{}.ffn_up",
        &[INNER, WIDTH],
    ),
    Recipe::rename(
        "encoder.block.{}.layer.1.DenseReluDense.wi",
        "enc.blk.{}.ffn_up",
        &[INNER, WIDTH],
    ),
    Recipe::rename(
        "encoder.block.{}.layer.1.DenseReluDense.wo",
        "enc.blk.{}.ffn_down",
        &[WIDTH, INNER],
    ),
];

/// A tensor of the decoder's layers, of which there may be fewer than of the encoder's.
const fn of_decoder(from: &'static str, to: &'static str, dims: &'static [Size]) -> Recipe {
    Recipe::rename(from, to, dims).when(When::LayersBefore(Field(&["num_decoder_layers"])))
}

const DECODER: &[Recipe] = &[
    Recipe::rename("decoder.final_layer_norm", "dec.output_norm", &[WIDTH]),
    of_decoder(
        "decoder.block.{}.layer.0.layer_norm",
        "dec.blk.{}.attn_norm",
        &[WIDTH],
    ),
    of_decoder(
        "decoder.block.{}.layer.0.SelfAttention.q",
        "dec.blk.{}.attn_q",
        &[HEADS, WIDTH],
    ),
    of_decoder(
        "decoder.block.{}.layer.0.SelfAttention.k",
        "dec.blk.{}.attn_k",
        &[HEADS, WIDTH],
    ),
    of_decoder(
        "decoder.block.{}.layer.0.SelfAttention.v",
        "dec.blk.{}.attn_v",
        &[HEADS, WIDTH],
    ),
    of_decoder(
        "decoder.block.{}.layer.0.SelfAttention.o",
        "dec.blk.{}.attn_o",
        &[WIDTH, HEADS],
    ),
    of_decoder(
        "decoder.block.{}.layer.0.SelfAttention.relative_attention_bias",
        "dec.blk.{}.attn_rel_b",
        BUCKETS,
    ),
    of_decoder(
        "decoder.block.{}.layer.1.layer_norm",
        "dec.blk.{}.cross_attn_norm",
        &[WIDTH],
    ),
    of_decoder(
        "decoder.block.{}.layer.1.EncDecAttention.q",
        "dec.blk.{}.cross_attn_q",
        &[HEADS, WIDTH],
    ),
    of_decoder(
        "decoder.block.{}.layer.1.EncDecAttention.k",
        "dec.blk.{}.cross_attn_k",
        &[HEADS, WIDTH],
    ),
    of_decoder(
        "decoder.block.{}.layer.1.EncDecAttention.v",
        "dec.blk.{}.cross_attn_v",
        &[HEADS, WIDTH],
    ),
    of_decoder(
        "decoder.block.{}.layer.1.EncDecAttention.o",
        "dec.blk.{}.cross_attn_o",
        &[WIDTH, HEADS],
    ),
    of_decoder(
        "decoder.block.{}.layer.1.EncDecAttention.relative_attention_bias",
        "dec.blk.{}.cross_attn_rel_b",
        BUCKETS,
    ),
    of_decoder(
        "decoder.block.{}.layer.2.layer_norm",
        "dec.blk.{}.ffn_norm",
        &[WIDTH],
    ),
    of_decoder(
        "decoder.block.{}.layer.2.DenseReluDense.wi_0",
        "dec.blk.{}.ffn_gate",
        &[INNER, WIDTH],
    ),
    of_decoder(
        "decoder.block.{}.layer.2.DenseReluDense.wi_1",
        "dec.blk.{}.ffn_up",
        &[INNER, WIDTH],
    ),
    of_decoder(
        "decoder.block.{}.layer.2.DenseReluDense.wi",
        "dec.blk.{}.ffn_up",
        &[INNER, WIDTH],
    ),
    of_decoder(
        "decoder.block.{}.layer.2.DenseReluDense.wo",
        "dec.blk.{}.ffn_down",
        &[WIDTH, INNER],
    ),
];
