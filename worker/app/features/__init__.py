"""The features: small, and true about their input. Each is a pure function of what was posted."""
