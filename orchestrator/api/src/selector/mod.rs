//! Label and field selectors: of query strings, and of `LabelSelector` objects.

mod field;
mod label;

pub use field::{FieldSelector, field_value};
pub use label::{LabelSelector, Operator, Requirement};

use crate::Status;

/// Why a selector is none. A client's mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text does not parse.
    #[error("unable to parse requirement: {0}")]
    Label(String),
    /// The text does not parse.
    #[error("invalid field selector {0:?}: use field=value, field==value or field!=value, joined by commas")]
    Field(String),
    /// The kind has no such field to select by.
    #[error("field label not supported: {0}")]
    Unsupported(String),
}

impl From<SelectorError> for Status {
    fn from(error: SelectorError) -> Self {
        Self::bad_request(error.to_string())
    }
}
