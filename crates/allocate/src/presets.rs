//! llama.cpp's preset rules as one table: the type of a tensor under a file type.
//!
//! A row applies if it lists the tensor's role and the file type, and all its conditions hold; the
//! first matching row wins, otherwise the file type's default applies. The rules are those of the
//! reference's `llama_tensor_get_type`; the order of rows matters only where two match.

use super::file_type::FileType;
use quantier_arch::Role;
use quantier_blocks::types::GgmlType;

/// Facts about a model for the rules.
#[derive(Clone, Debug, Default)]
pub struct ModelFacts {
    /// `general.architecture`.
    pub architecture: String,
    /// Layers, including multi-token prediction.
    pub layers: u32,
    /// Layers of multi-token prediction.
    pub predict_layers: u32,
    /// Attention heads of the first layer.
    pub heads: u32,
    /// Key-value heads of the first layer.
    pub kv_heads: u32,
    /// Experts in a layer; 0 for a dense model.
    pub experts: u32,
    /// True for tied embeddings.
    pub tied: bool,
    /// Tensors that carry attention values.
    pub value_tensors: u32,
    /// True with an importance matrix.
    pub has_imatrix: bool,
}

impl ModelFacts {
    /// Query heads per key-value head; 0 without key-value heads.
    fn heads_per_kv_head(&self) -> u32 {
        self.heads.checked_div(self.kv_heads).unwrap_or(0)
    }

    /// True if llama.cpp treats the model as a 70B, by architecture and depth.
    fn is_70b(&self) -> bool {
        let depth = self.layers.saturating_sub(self.predict_layers);
        match &*self.architecture {
            "llama" | "llama-embed" => {
                depth == 80 && self.experts != 8 && self.heads != self.kv_heads
            }
            "qwen2" | "deci" | "olmo" => depth == 80,
            "jais2" => depth == 68,
            _ => false,
        }
    }
}

/// Facts about a tensor for the rules.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorFacts {
    /// Its role.
    pub role: Role,
    /// Weights in a row.
    pub row_len: u64,
    /// Matrices in it (experts); 1 for a plain one.
    pub matrices: u64,
    /// Ordinal within its role among the tensors under these rules, or, for the FFN of a model with
    /// experts, the layer.
    pub ordinal: u32,
    /// True if mixtures use Q8_0.
    pub keeps_q8: bool,
}

#[derive(Clone, Copy)]
enum When {
    /// At least four query heads share a key-value head.
    Gqa4,
    FourExperts,
    EightExperts,
    NotEightExperts,
    ManyMatrices,
    Imatrix,
    NoImatrix,
    Falcon,
    NotFalcon,
    /// Bailing MoE 3 has 3-D tensors beside its experts.
    NoBailingProjection,
    /// Ordinal below a number.
    Among(u32),
    FirstEighth,
    FirstSixteenth,
    /// Neither the first nor the last eighth.
    MiddleLayers,
    /// The first and last eighth, and every third layer between.
    MoreBits,
    /// Rows are not whole blocks of the file type's default type.
    OddRows,
    /// The file type's default is anything but Q8_0.
    NotQ8,
}

struct Rule {
    roles: &'static [Role],
    file_types: &'static [FileType],
    when: &'static [When],
    then: GgmlType,
}

const fn rule(
    roles: &'static [Role],
    file_types: &'static [FileType],
    when: &'static [When],
    then: GgmlType,
) -> Rule {
    Rule {
        roles,
        file_types,
        when,
        then,
    }
}

/// Any file type.
const ANY: &[FileType] = &[];

const OUTPUT: &[Role] = &[Role::Output];
const EMBEDDING: &[Role] = &[Role::TokenEmbedding];
const VALUES: &[Role] = &[Role::AttentionV, Role::AttentionQkv, Role::AttentionKvB];
const Q: &[Role] = &[Role::AttentionQ];
const K: &[Role] = &[Role::AttentionK];
const ATTENTION_OUT: &[Role] = &[Role::AttentionOutput];
const DOWN: &[Role] = &[Role::FfnDown];
const GATE_UP: &[Role] = &[Role::FfnGate, Role::FfnUp];
const ANY_ROLE: &[Role] = &[];

/// The file types around two bits, with their own rules for all tensors of a layer.
const AROUND_TWO_BITS: &[FileType] = &[
    FileType::IQ1_S,
    FileType::IQ1_M,
    FileType::IQ2_XXS,
    FileType::IQ2_XS,
    FileType::IQ2_S,
    FileType::IQ2_M,
];

use FileType as F;
use GgmlType as T;
use When::*;

#[rustfmt::skip]
const RULES: &[Rule] = &[
    // The output matrix, or a tied embedding.
    rule(OUTPUT, &[F::MXFP4_MOE], &[], T::Q8_0),
    rule(OUTPUT, ANY, &[Falcon], T::Q8_0),
    rule(OUTPUT, ANY, &[OddRows], T::Q8_0),
    rule(OUTPUT, &[F::IQ1_S, F::IQ1_M, F::IQ2_XXS, F::IQ2_XS, F::IQ2_S, F::IQ2_M, F::IQ3_XXS], &[], T::Q5_K),
    rule(OUTPUT, ANY, &[NotQ8], T::Q6_K),
    rule(OUTPUT, ANY, &[], T::Q8_0),

    // Mixtures of experts in MXFP4: the experts, and Q8_0 for all else.
    rule(ANY_ROLE, &[F::MXFP4_MOE], &[ManyMatrices, NoBailingProjection], T::MXFP4),
    rule(ANY_ROLE, &[F::MXFP4_MOE], &[], T::Q8_0),

    rule(EMBEDDING, &[F::IQ1_S, F::IQ1_M, F::IQ2_XXS, F::IQ2_XS], &[], T::Q2_K),
    rule(EMBEDDING, &[F::IQ2_S, F::IQ2_M, F::IQ3_XXS], &[], T::IQ3_S),
    rule(EMBEDDING, &[F::TQ1_0, F::TQ2_0, F::Q2_0], &[], T::Q4_K),

    // Attention values.
    rule(VALUES, AROUND_TWO_BITS, &[Gqa4], T::Q4_K),
    rule(VALUES, AROUND_TWO_BITS, &[FourExperts], T::Q4_K),
    rule(VALUES, &[F::IQ2_S, F::IQ2_M], &[], T::IQ3_S),
    rule(VALUES, AROUND_TWO_BITS, &[], T::Q2_K),
    rule(VALUES, ANY, &[EightExperts], T::Q8_0),
    rule(VALUES, &[F::Q2_K, F::Q2_K_S, F::IQ3_XXS, F::IQ3_XS, F::IQ3_S], &[Gqa4], T::Q4_K),
    rule(VALUES, &[F::Q2_K], &[], T::Q3_K),
    rule(VALUES, &[F::IQ3_XXS], &[NoImatrix], T::IQ3_S),
    rule(VALUES, &[F::IQ3_M], &[], T::Q4_K),
    rule(VALUES, &[F::Q3_K_M], &[Among(2)], T::Q5_K),
    rule(VALUES, &[F::Q3_K_M], &[], T::Q4_K),
    rule(VALUES, &[F::Q3_K_L], &[], T::Q5_K),
    rule(VALUES, &[F::IQ4_NL, F::IQ4_XS], &[Gqa4], T::Q5_K),
    rule(VALUES, &[F::Q4_K_M, F::Q5_K_M], &[MoreBits], T::Q6_K),
    rule(VALUES, &[F::Q4_K_S], &[Among(4)], T::Q5_K),

    // Attention keys and queries.
    rule(K, AROUND_TWO_BITS, &[EightExperts], T::Q4_K),
    rule(K, ANY, &[EightExperts], T::Q8_0),
    rule(K, &[F::IQ3_XS], &[], T::IQ3_XXS),
    rule(K, &[F::IQ3_XXS], &[], T::IQ2_S),
    rule(Q, &[F::IQ3_XS], &[], T::IQ3_XXS),
    rule(Q, &[F::IQ3_XXS], &[], T::IQ2_S),

    // Attention output.
    rule(ATTENTION_OUT, AROUND_TWO_BITS, &[EightExperts], T::Q5_K),
    rule(ATTENTION_OUT, &[F::IQ1_S, F::IQ1_M], &[], T::IQ2_XXS),
    rule(ATTENTION_OUT, &[F::IQ2_S, F::IQ2_M], &[], T::IQ3_S),
    rule(ATTENTION_OUT, &[F::Q3_K_L], &[Falcon], T::Q4_K),
    rule(ATTENTION_OUT, &[F::Q2_K, F::Q3_K_S, F::Q3_K_M, F::Q4_K_S, F::Q4_K_M, F::IQ3_XXS, F::IQ3_XS, F::IQ3_S,
                          F::IQ3_M, F::IQ4_NL, F::IQ4_XS], &[NotFalcon, EightExperts], T::Q5_K),
    rule(ATTENTION_OUT, &[F::Q2_K], &[NotFalcon, NotEightExperts], T::Q3_K),
    rule(ATTENTION_OUT, &[F::IQ3_XXS], &[NotFalcon, NotEightExperts], T::IQ3_S),
    rule(ATTENTION_OUT, &[F::Q3_K_M, F::IQ3_M], &[NotFalcon, NotEightExperts], T::Q4_K),
    rule(ATTENTION_OUT, &[F::Q3_K_L], &[NotFalcon, NotEightExperts], T::Q5_K),

    // FFN down.
    rule(DOWN, &[F::IQ2_S, F::IQ2_M], &[FirstEighth], T::IQ3_S),
    rule(DOWN, AROUND_TWO_BITS, &[FirstEighth], T::Q2_K),
    rule(DOWN, &[F::Q2_K], &[], T::Q3_K),
    rule(DOWN, &[F::Q2_K_S], &[FirstEighth], T::Q4_K),
    rule(DOWN, &[F::IQ3_XXS], &[NoImatrix, FirstEighth], T::Q4_K),
    rule(DOWN, &[F::IQ3_XXS], &[NoImatrix], T::Q3_K),
    rule(DOWN, &[F::Q3_K_M], &[FirstSixteenth], T::Q5_K),
    rule(DOWN, &[F::Q3_K_M], &[NotFalcon], T::Q4_K),
    rule(DOWN, &[F::Q3_K_M], &[MoreBits], T::Q4_K),
    rule(DOWN, &[F::IQ3_M], &[FirstEighth], T::Q4_K),
    rule(DOWN, &[F::IQ3_M], &[EightExperts, MoreBits], T::Q4_K),
    rule(DOWN, &[F::Q3_K_L], &[Falcon], T::Q4_K),
    rule(DOWN, &[F::Q3_K_L], &[], T::Q5_K),
    rule(DOWN, &[F::Q4_K_M], &[Falcon, FirstSixteenth], T::Q6_K),
    rule(DOWN, &[F::Q4_K_M], &[Falcon, MoreBits], T::Q5_K),
    rule(DOWN, &[F::Q4_K_M, F::Q5_K_M], &[MoreBits], T::Q6_K),
    rule(DOWN, &[F::IQ4_NL, F::IQ4_XS], &[NoImatrix, FirstEighth], T::Q5_K),
    rule(DOWN, &[F::Q4_K_S], &[NotFalcon, FirstEighth], T::Q5_K),
    // Q4_0 and Q5_0 with importance weights can fail in the first layers; types with an offset do not.
    rule(DOWN, &[F::Q4_0], &[Imatrix, FirstEighth], T::Q4_1),
    rule(DOWN, &[F::Q5_0], &[Imatrix, FirstEighth], T::Q5_1),

    // FFN gate and up.
    rule(GATE_UP, &[F::IQ3_XS], &[MiddleLayers], T::IQ3_XXS),
];

/// True if the ordinal of an FFN tensor is its layer, not its index within the role.
///
/// Experts may be out of order; the file types around two bits count them anyway.
pub(crate) fn counts_layers(file_type: FileType, role: Role, model: &ModelFacts) -> bool {
    model.experts > 1
        && matches!(role, Role::FfnDown | Role::FfnGate | Role::FfnUp)
        && !AROUND_TWO_BITS.contains(&file_type)
        && file_type != FileType::MXFP4_MOE
}

/// The preset's type for a tensor, regardless of its shape.
pub(crate) fn type_for(file_type: FileType, tensor: &TensorFacts, model: &ModelFacts) -> GgmlType {
    let default = file_type.default_type();
    if tensor.keeps_q8 && default.is_quantized() {
        return GgmlType::Q8_0;
    }
    let serves_as_output = model.tied && tensor.role == Role::TokenEmbedding;
    let role = if serves_as_output {
        Role::Output
    } else {
        tensor.role
    };
    let applies = |rule: &&Rule| {
        (rule.roles.is_empty() || rule.roles.contains(&role))
            && (rule.file_types.is_empty() || rule.file_types.contains(&file_type))
            && rule
                .when
                .iter()
                .all(|when| holds(*when, default, tensor, model))
    };
    let chosen = RULES.iter().find(applies).map_or(default, |rule| rule.then);
    // In a 70B eight heads share one value matrix: more bits for it take few bytes.
    let bumped = role.carries_values() && !AROUND_TWO_BITS.contains(&file_type) && model.is_70b();
    match chosen {
        GgmlType::Q3_K | GgmlType::Q4_K if bumped => GgmlType::Q5_K,
        other => other,
    }
}

fn holds(when: When, default: GgmlType, tensor: &TensorFacts, model: &ModelFacts) -> bool {
    let (i, n) = (
        tensor.ordinal,
        if tensor.role.carries_values() {
            model.value_tensors
        } else {
            model.layers
        },
    );
    match when {
        Gqa4 => model.heads_per_kv_head() >= 4,
        FourExperts => model.experts >= 4,
        EightExperts => model.experts == 8,
        NotEightExperts => model.experts != 8,
        ManyMatrices => tensor.matrices > 1,
        Imatrix => model.has_imatrix,
        NoImatrix => !model.has_imatrix,
        Falcon => model.architecture == "falcon",
        NotFalcon => model.architecture != "falcon",
        NoBailingProjection => {
            model.architecture != "bailingmoe3"
                || matches!(tensor.role, Role::FfnUp | Role::FfnGate | Role::FfnDown)
        }
        Among(count) => i < count,
        FirstEighth => i < n / 8,
        FirstSixteenth => i < n / 16,
        MiddleLayers => i >= n / 8 && i < 7 * n / 8,
        MoreBits => i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2,
        OddRows => !tensor.row_len.is_multiple_of(default.block_len() as u64),
        NotQ8 => default != GgmlType::Q8_0,
    }
}

/// The fallback type if rows are not whole blocks of `wanted`; `None` if the reference has none.
pub(crate) fn fit_rows(wanted: GgmlType, row_len: u64) -> Option<GgmlType> {
    let fits = |t: GgmlType| row_len.is_multiple_of(t.block_len() as u64);
    if fits(wanted) {
        return Some(wanted);
    }
    let smaller = match wanted {
        T::IQ1_S
        | T::IQ1_M
        | T::IQ2_XXS
        | T::IQ2_XS
        | T::IQ2_S
        | T::IQ3_XXS
        | T::IQ3_S
        | T::IQ4_XS => T::IQ4_NL,
        T::Q2_0 | T::Q2_K | T::Q3_K | T::TQ1_0 | T::TQ2_0 => T::Q4_0,
        T::Q4_K => T::Q5_0,
        T::Q5_K => T::Q5_1,
        T::Q6_K => T::Q8_0,
        t if t.block_len() <= 32 => t,
        _ => return None,
    };
    Some(if fits(smaller) { smaller } else { T::F16 })
}

/// True if the reference requires importance weights for this tensor and type.
pub fn requires_imatrix(role: Role, target: GgmlType, file_type: Option<FileType>) -> bool {
    if matches!(role, Role::TokenEmbedding | Role::Output) {
        return false;
    }
    matches!(
        target,
        T::IQ3_XXS | T::IQ2_XXS | T::IQ2_XS | T::IQ2_S | T::IQ1_M | T::IQ1_S
    ) || (target == T::Q2_K && file_type == Some(FileType::Q2_K_S))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_rows_have_a_fallback() {
        assert_eq!(fit_rows(T::Q4_K, 512), Some(T::Q4_K));
        assert_eq!(fit_rows(T::Q4_K, 320), Some(T::Q5_0));
        assert_eq!(fit_rows(T::Q4_K, 40), Some(T::F16));
    }
}
