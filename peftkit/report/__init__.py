"""What is shown of models and runs: on the terminal, as a page, as JSON."""
