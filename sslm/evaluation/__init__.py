"""How trained models are measured: on text, and by tasks of lm-evaluation-harness."""
