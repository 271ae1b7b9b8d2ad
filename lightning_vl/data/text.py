"""What every data module of texts shares: its vocabulary travels with the checkpoint, and no other one is accepted."""

from typing import Any

from lightning_vl.data.module import DataModule
from lightning_vl.data.tokenizer import WordPiece
from lightning_vl.errors import UserError


class TextData(DataModule):
    """Batches of texts."""

    tokenizer: WordPiece  # once it is set up

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How text becomes numbers."""
        return {"lowercase": self.tokenizer.lowercase, "vocabulary": self.tokenizer.fingerprint}

    def state_dict(self) -> dict[str, Any]:
        """See `DataModule`; the whole vocabulary travels with the checkpoint."""
        return {**super().state_dict(), "vocabulary": self.tokenizer.stored()}

    def accept(self, saved: dict[str, Any]) -> None:
        """Refuses a checkpoint whose network has read pieces of another vocabulary."""
        if saved != self.preprocessing:
            raise UserError(
                f"the checkpoint was trained with another vocabulary than this one of {len(self.tokenizer)} pieces",
                "give data.init_args.vocabulary CheckpointVocabulary with the checkpoint's path: it carries its own",
            )
