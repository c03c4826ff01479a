//! middleend
