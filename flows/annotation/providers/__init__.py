"""Label providers, one module or package each, behind ``flows.annotation.providers.base.LabelProvider``."""
