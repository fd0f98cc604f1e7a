"""`--draft` of `bloomref generate`: the draft, and what it was worth."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bloomref.cli import shared

if TYPE_CHECKING:
    from bloomref.causal_lm import BloomCausalLM


@dataclass(frozen=True)
class Drafted:
    """A draft as an argument of generate, and its figures; nothing without `--draft`.

    Args:
        arguments: of `generate`, `stream` and `generate_each`.
    """

    arguments: dict[str, Any]

    @classmethod
    def of(cls, language_model: "BloomCausalLM", draft: str | None) -> "Drafted":
        """The draft that the option names, loaded."""
        if draft is None:
            return cls({})
        with shared.working(f"loading {draft}"):
            return cls({"draft": language_model.draft(draft)})

    def report(self) -> dict[str, Any]:
        """The key `draft` of a JSON report."""
        if not self.arguments:
            return {}
        figures = self.arguments["draft"].figures
        rates = {"acceptance": figures.acceptance, "tokens_per_pass": figures.tokens_per_pass}
        return {"draft": asdict(figures) | rates}

    def show(self, quiet: bool) -> None:
        """One line on stderr, unless `quiet`."""
        if not self.arguments or quiet:
            return
        figures = self.arguments["draft"].figures
        share = f"{figures.acceptance:.0%} of {figures.proposed} proposed tokens accepted"
        shared.note(f"draft: {figures.tokens_per_pass:.2f} tokens a pass, {share}")
