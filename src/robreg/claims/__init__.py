"""The paper's claims, each judged with an estimate, an interval and a verdict."""
