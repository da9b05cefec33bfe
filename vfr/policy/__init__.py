"""Rules: the language, its meaning, and the tables the fastpath decides by."""

from vfr.policy.compile import CompiledPolicy, compile_rules
from vfr.policy.language import Rule, RuleError, RuleSet, parse

__all__ = ["CompiledPolicy", "Rule", "RuleError", "RuleSet", "compile_rules", "parse"]
