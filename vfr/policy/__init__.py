"""Rules: the language, its meaning, and the tables the fastpath decides by."""

from vfr.policy.compile import CompiledPolicy, compile_rules, numbered
from vfr.policy.language import Document, ForwardRule, RuleError, parse, parse_document
from vfr.policy.rules import Party, Rule, RuleSet, Traffic, What

__all__ = [
    "CompiledPolicy",
    "Document",
    "ForwardRule",
    "Party",
    "Rule",
    "RuleError",
    "RuleSet",
    "Traffic",
    "What",
    "compile_rules",
    "numbered",
    "parse",
    "parse_document",
]
