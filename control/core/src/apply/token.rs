//! Join tokens.

use shoal_types::id::TokenId;
use shoal_types::object::{JoinToken, NodeRole, Timestamp};

use super::At;
use crate::command::{Join, Outcome};
use crate::rejection::{Kind, Rejection};
use crate::state::State;

/// What a token is good for.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    pub(super) role: NodeRole,
    pub(super) secret_sha256: &'a [u8; 32],
    pub(super) ttl_ms: u64,
    pub(super) uses: Option<u32>,
}

pub(super) fn create(
    state: &mut State,
    at: At,
    id: &TokenId,
    terms: Terms<'_>,
) -> Result<Outcome, Rejection> {
    if state.tokens.contains_key(id) {
        return Err(Rejection::IdTaken { kind: Kind::Token, id: id.to_string() });
    }
    if terms.ttl_ms == 0 {
        return Err(Rejection::invalid("ttl", "0", "is over at once", "give a life time, such as 24h"));
    }
    if terms.uses == Some(0) {
        return Err(Rejection::invalid("uses", 0, "lets nobody join", "give at least 1"));
    }
    let token = JoinToken {
        id: id.clone(),
        role: terms.role,
        secret_sha256: *terms.secret_sha256,
        expires_at: Timestamp(at.now.0.saturating_add(terms.ttl_ms)),
        uses_left: terms.uses,
        created_at: at.now,
    };
    state.tokens.insert(id.clone(), token);
    Ok(Outcome::Token { id: id.clone() })
}

pub(super) fn remove(state: &mut State, id: &TokenId) -> Result<Outcome, Rejection> {
    state.tokens.remove(id).ok_or_else(|| Rejection::not_found(Kind::Token, id))?;
    Ok(Outcome::Token { id: id.clone() })
}

/// The role that the token gives, if it lets this host in.
pub(super) fn admit(state: &State, at: At, join: &Join) -> Result<NodeRole, Rejection> {
    let token = state.tokens.get(&join.token);
    // A wrong id and a wrong secret answer the same, or ids could be probed.
    let Some(token) = token.filter(|t| same(&t.secret_sha256, &join.secret_sha256)) else {
        return Err(Rejection::TokenUnknown { id: join.token.clone() });
    };
    if at.now >= token.expires_at {
        return Err(Rejection::TokenExpired { id: token.id.clone(), at: token.expires_at });
    }
    if token.uses_left == Some(0) {
        return Err(Rejection::TokenUsedUp { id: token.id.clone() });
    }
    Ok(token.role)
}

/// Takes one use off.
pub(super) fn consume(state: &mut State, id: &TokenId) {
    if let Some(uses) = state.tokens.get_mut(id).and_then(|t| t.uses_left.as_mut()) {
        *uses = uses.saturating_sub(1);
    }
}

/// Compares without stopping at the first difference.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}
