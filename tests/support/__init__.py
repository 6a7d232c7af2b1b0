"""What tests share: small cohorts, runs, reference implementations."""
