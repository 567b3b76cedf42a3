"""A trained model as a folder: ``from mmlm.pretrained import from_pretrained``."""

from mmlm.pretrained.model import MmlmModel as MmlmModel
from mmlm.pretrained.model import from_pretrained as from_pretrained
