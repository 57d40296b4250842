"""All benchmarks of an evaluation in one table: JSON, Markdown, HTML and LaTeX."""

from dataclasses import dataclass
from functools import cache

from data_contracts.artifact import ArtifactRef
from data_contracts.comparison import Comparison
from data_contracts.configs import EvaluationConfig
from sdrpn_core.evaluation.comparison import compare
from sdrpn_core.report.comparison import to_html, to_latex, to_markdown
from tasks import recipes
from tasks.artifacts.stage import FileShard, StageRun, run_stage
from tasks.artifacts.store import ArtifactStore
from tasks.evaluate import read_results
from tasks.rpn_files import stored_checkpoint

JSON_NAME, MARKDOWN_NAME, HTML_NAME, LATEX_NAME = recipes.TABLE_FILES


@dataclass(frozen=True)
class TableInputs:
    """What a table is made from."""

    rpn: ArtifactRef
    results: tuple[tuple[str, ArtifactRef], ...]
    """(name of the source, its results)."""
    sweep: tuple[tuple[str, float, ArtifactRef], ...]
    """(name, region threshold, results with it)."""

    @property
    def refs(self) -> tuple[ArtifactRef, ...]:
        """All of them."""
        swept = (ref for _, _, ref in self.sweep)
        return (self.rpn, *(ref for _, ref in self.results), *swept)


def write_table(
    run: StageRun, inputs: TableInputs, model: str, settings: EvaluationConfig
) -> ArtifactRef:
    """Make the table."""

    @cache
    def comparison() -> Comparison:
        store = run.store
        return compare(
            {name: read_results(store, ref) for name, ref in inputs.results},
            {(name, value): read_results(store, ref) for name, value, ref in inputs.sweep},
            model=model,
            own_threshold=settings.threshold_beside(
                stored_checkpoint(store, inputs.rpn).config.threshold
            ),
            paper_model=settings.paper_model,
        )

    def make_shard(index: int) -> FileShard:
        name = recipes.TABLE_FILES[index]
        found = comparison()
        text = {
            JSON_NAME: lambda: f"{found.model_dump_json(indent=2)}\n",
            MARKDOWN_NAME: lambda: to_markdown(found),
            HTML_NAME: lambda: to_html(found),
            LATEX_NAME: lambda: to_latex(found),
        }[name]()
        return FileShard(name, text.encode())

    names = [[name for name, _ in inputs.results], [[n, value] for n, value, _ in inputs.sweep]]
    recipe = recipes.table_recipe(inputs.refs, names, model, settings)
    return run_stage(run, recipe, make_shard)


def read_table(store: ArtifactStore, table: ArtifactRef) -> Comparison:
    """The table as data."""
    return Comparison.model_validate_json(store.read_file(table, JSON_NAME))


def table_uris(store: ArtifactStore, table: ArtifactRef) -> tuple[str, ...]:
    """Where its files are."""
    return tuple(store.file_uri(table, name) for name in recipes.TABLE_FILES)
