//! llama.cpp's file types: the presets that `llama-quantize` takes by name or number.

use quantier_blocks::types::GgmlType;

/// A preset. The numbers are those of `general.file_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileType(u32);

macro_rules! file_types {
    ($($konst:ident = $id:literal, $default:ident;)*) => {
        impl FileType {
            $(#[doc = concat!("File type ", $id, "; most tensors become ", stringify!($default), ".")]
              pub const $konst: FileType = FileType($id);)*
        }
        const DEFAULTS: &[(u32, GgmlType)] = &[$(($id, GgmlType::$default)),*];
    };
}

file_types! {
    F32       =  0, F32;
    F16       =  1, F16;
    Q4_0      =  2, Q4_0;
    Q4_1      =  3, Q4_1;
    Q8_0      =  7, Q8_0;
    Q5_0      =  8, Q5_0;
    Q5_1      =  9, Q5_1;
    Q2_K      = 10, Q2_K;
    Q3_K_S    = 11, Q3_K;
    Q3_K_M    = 12, Q3_K;
    Q3_K_L    = 13, Q3_K;
    Q4_K_S    = 14, Q4_K;
    Q4_K_M    = 15, Q4_K;
    Q5_K_S    = 16, Q5_K;
    Q5_K_M    = 17, Q5_K;
    Q6_K      = 18, Q6_K;
    IQ2_XXS   = 19, IQ2_XXS;
    IQ2_XS    = 20, IQ2_XS;
    Q2_K_S    = 21, Q2_K;
    IQ3_XS    = 22, IQ3_S;
    IQ3_XXS   = 23, IQ3_XXS;
    IQ1_S     = 24, IQ1_S;
    IQ4_NL    = 25, IQ4_NL;
    IQ3_S     = 26, IQ3_S;
    IQ3_M     = 27, IQ3_S;
    IQ2_S     = 28, IQ2_XS;
    IQ2_M     = 29, IQ2_S;
    IQ4_XS    = 30, IQ4_XS;
    IQ1_M     = 31, IQ1_M;
    BF16      = 32, BF16;
    TQ1_0     = 36, TQ1_0;
    TQ2_0     = 37, TQ2_0;
    MXFP4_MOE = 38, MXFP4;
    NVFP4     = 39, NVFP4;
    Q1_0      = 40, Q1_0;
    Q2_0      = 41, Q2_0;
}

impl FileType {
    /// The number in `general.file_type`.
    pub fn id(self) -> u32 {
        self.0
    }

    /// The type of tensors without a rule.
    pub fn default_type(self) -> GgmlType {
        // Every constant has a row; the fallback cannot be reached.
        DEFAULTS
            .iter()
            .find(|(id, _)| *id == self.0)
            .map_or(GgmlType::F32, |(_, t)| *t)
    }

    /// The name of the preset, aliases aside.
    pub fn name(self) -> &'static str {
        // A file type of conversions, which llama-quantize does not offer.
        if self == FileType::NVFP4 {
            return "NVFP4";
        }
        let named = |o: &&Choice| o.file_type == Some(self) && !o.is_alias;
        CHOICES.iter().find(named).map_or("?", |o| o.name)
    }

    /// The preset of this exact name.
    pub fn of_name(name: &str) -> Option<FileType> {
        CHOICES.iter().find(|choice| choice.name == name)?.file_type
    }

    /// True of presets chosen by size: K-quants, i-quants of two bits and more, Q8_0. The name
    /// of any other, such as MXFP4_MOE or TQ1_0, promises one type.
    pub fn is_usual(self) -> bool {
        let name = self.name();
        let i_quant = name.starts_with("IQ") && !name.starts_with("IQ1") && name != "IQ4_NL";
        i_quant || name.contains("_K") || name == "Q8_0"
    }
}

/// A preset on the command line.
#[derive(Debug)]
pub struct Choice {
    /// The name, with llama.cpp's capitals.
    pub name: &'static str,
    /// The file type; `None` for COPY, which keeps every tensor as it is.
    pub file_type: Option<FileType>,
    /// True of other names of a listed preset.
    pub is_alias: bool,
}

const fn preset(name: &'static str, file_type: FileType) -> Choice {
    Choice {
        name,
        file_type: Some(file_type),
        is_alias: false,
    }
}

const fn alias(name: &'static str, file_type: FileType) -> Choice {
    Choice {
        name,
        file_type: Some(file_type),
        is_alias: true,
    }
}

/// In llama-quantize's order, which decides between two names of a number.
pub const CHOICES: &[Choice] = &[
    preset("Q1_0", FileType::Q1_0),
    preset("Q2_0", FileType::Q2_0),
    preset("Q4_0", FileType::Q4_0),
    preset("Q4_1", FileType::Q4_1),
    preset("MXFP4_MOE", FileType::MXFP4_MOE),
    preset("Q5_0", FileType::Q5_0),
    preset("Q5_1", FileType::Q5_1),
    preset("IQ2_XXS", FileType::IQ2_XXS),
    preset("IQ2_XS", FileType::IQ2_XS),
    preset("IQ2_S", FileType::IQ2_S),
    preset("IQ2_M", FileType::IQ2_M),
    preset("IQ1_S", FileType::IQ1_S),
    preset("IQ1_M", FileType::IQ1_M),
    preset("TQ1_0", FileType::TQ1_0),
    preset("TQ2_0", FileType::TQ2_0),
    preset("Q2_K", FileType::Q2_K),
    preset("Q2_K_S", FileType::Q2_K_S),
    preset("IQ3_XXS", FileType::IQ3_XXS),
    preset("IQ3_S", FileType::IQ3_S),
    preset("IQ3_M", FileType::IQ3_M),
    alias("Q3_K", FileType::Q3_K_M),
    preset("IQ3_XS", FileType::IQ3_XS),
    preset("Q3_K_S", FileType::Q3_K_S),
    preset("Q3_K_M", FileType::Q3_K_M),
    preset("Q3_K_L", FileType::Q3_K_L),
    preset("IQ4_NL", FileType::IQ4_NL),
    preset("IQ4_XS", FileType::IQ4_XS),
    alias("Q4_K", FileType::Q4_K_M),
    preset("Q4_K_S", FileType::Q4_K_S),
    preset("Q4_K_M", FileType::Q4_K_M),
    alias("Q5_K", FileType::Q5_K_M),
    preset("Q5_K_S", FileType::Q5_K_S),
    preset("Q5_K_M", FileType::Q5_K_M),
    preset("Q6_K", FileType::Q6_K),
    preset("Q8_0", FileType::Q8_0),
    preset("F16", FileType::F16),
    preset("BF16", FileType::BF16),
    preset("F32", FileType::F32),
    Choice {
        name: "COPY",
        file_type: None,
        is_alias: false,
    },
];

impl Choice {
    /// The choice with this name (in any case) or number.
    pub fn parse(text: &str) -> Option<&'static Choice> {
        let number = text.parse::<u32>().ok().map(FileType);
        CHOICES
            .iter()
            .find(|o| o.name.eq_ignore_ascii_case(text))
            .or_else(|| {
                CHOICES
                    .iter()
                    .find(|o| number.is_some() && o.file_type == number)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_understood() {
        assert_eq!(
            Choice::parse("q4_k_m").unwrap().file_type,
            Some(FileType::Q4_K_M)
        );
        assert_eq!(
            Choice::parse("15").unwrap().name,
            "Q4_K",
            "the first name with this number, as in llama-quantize"
        );
        assert_eq!(Choice::parse("0").unwrap().name, "F32");
        assert!(Choice::parse("copy").unwrap().file_type.is_none());
        assert!(Choice::parse("4").is_none());
        assert!(Choice::parse("model.gguf").is_none());
    }

    #[test]
    fn every_preset_has_one_name_and_a_default_type() {
        for (id, _) in DEFAULTS {
            let file_type = FileType(*id);
            let choices = CHOICES.iter();
            let choices = choices.filter(|o| o.file_type == Some(file_type) && !o.is_alias);
            // llama-quantize does not offer the type of NVFP4 files.
            let is_preset = file_type != FileType::NVFP4;
            assert_eq!(choices.count(), usize::from(is_preset), "{id}");
        }
        assert_eq!(FileType::IQ2_M.default_type(), GgmlType::IQ2_S);
        assert_eq!(FileType::Q4_K_M.name(), "Q4_K_M");
    }
}
