"""What the model reads of a conversation."""

from __future__ import annotations

import copy

from lace.engine.engine import Engine
from lace.serve.prompts import chat_prompt
from lace.serve.protocol import Message


def test_developers_and_the_system_speak_with_one_voice(tiny: Engine) -> None:
    """Chat formats know the older name; this one, as many do, leaves out whom it does not know."""
    engine = copy.copy(tiny)
    engine.tokenizer = copy.deepcopy(tiny.tokenizer)
    engine.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role in ('system', 'user') %}{{ m.role }}: {{ m.content }}\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    for role in ("system", "developer"):
        messages = [Message(role=role, content="Be brief."), Message(role="user", content="Use 3 and 4 to make 7")]
        assert chat_prompt(engine, messages) == "system: Be brief.\nuser: Use 3 and 4 to make 7\nassistant:"
